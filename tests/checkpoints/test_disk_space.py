"""Whether there is room for checkpoints is asked before one is written."""

import shutil
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from sora_jax.checkpoints import disk_space
from sora_jax.core.errors import StorageError, UserError

STATE = {"w": jax.ShapeDtypeStruct((1000, 250), jnp.float32), "n": jax.ShapeDtypeStruct((), jnp.int32)}
ONE = 1_000_004


def free(monkeypatch, count):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, count))


def test_bytes_are_those_of_all_leaves():
    assert disk_space.state_bytes(STATE) == ONE


def test_just_enough_is_enough_and_leaves_nothing_behind(tmp_path, monkeypatch):
    free(monkeypatch, 3 * ONE)
    disk_space.check_room(epath.Path(tmp_path), STATE, copies=3)
    assert list(tmp_path.iterdir()) == []


def test_too_little_is_told_with_both_numbers(tmp_path, monkeypatch):
    free(monkeypatch, 3 * ONE - 1)
    with pytest.raises(StorageError, match=r"has 3 MB free, and 3 more checkpoints of 1 MB need 3 MB: free"):
        disk_space.check_room(epath.Path(tmp_path), STATE, copies=3)


def test_a_folder_that_takes_no_file_is_told(tmp_path, monkeypatch):
    """A folder that only denies writing would not deny it to root, as whom tests may run."""
    (tmp_path / ".write-probe").mkdir()
    with pytest.raises(StorageError, match=r"checkpoints cannot be written in .*: Is a directory; make it writable"):
        disk_space.check_room(epath.Path(tmp_path), STATE, copies=1)


MISREAD = ["exp [lr=1e-3]", "a[", "a*", "a?", "a\\b", "gs:", "\udcff"]
PLAIN = ["exp (lr=1e-3) {a,b}", "]", "50%d", "a b", "赤い丸 🐕", "e\u0301", "-a", "a:b", "a#b", "a\nb", "~a", "b" * 255]


@pytest.mark.parametrize("name", MISREAD)
def test_a_folder_in_which_checkpoints_are_not_found_again_is_refused(name):
    with pytest.raises(UserError, match=r"cannot be kept under /runs/.* rename that folder, or give another --workdir"):
        disk_space.check_folder_names(Path("/runs") / name / "base")


@pytest.mark.parametrize("name", PLAIN)
def test_other_names_are_allowed(name):
    disk_space.check_folder_names(Path("/runs") / name / "base")
