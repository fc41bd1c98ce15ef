"""What a run wrote is checked to the last byte and the last record."""

import platform
import re
import shutil
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from sora_jax.checkpoints import manifest
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment.audit import checkpoint_faults, record_faults, shard_folders
from sora_jax.experiment.settings import read_settings
from sora_jax.train.workdir import Workdir


@pytest.fixture
def workdir(toy_workdir, tmp_path):
    return Workdir(shutil.copytree(toy_workdir, tmp_path / "toy"))


CHECKPOINTS = ("autoencoder/6", "autoencoder/8", "images/3", "images/6", "videos/6", "videos/8")


def flip(path, offset):
    contents = bytearray(path.read_bytes())
    contents[offset] ^= 1
    path.write_bytes(contents)


def all_faults(workdir):
    return dict(checkpoint_faults(workdir, read_settings(workdir.config())))


def test_shards_that_nobody_touched_are_whole(workdir):
    seen = []
    assert record_faults(PreparedSet(workdir.prepared()), progress=seen.append) == []
    assert seen == [96]


def test_one_flipped_bit_is_named(workdir, python):
    block = max((workdir.checkpoints("videos") / "8").rglob("*"), key=lambda path: path.stat().st_size)
    flip(block, block.stat().st_size // 2)
    (workdir.checkpoints("videos") / "8" / "added").write_text("x")
    faults = {name: found for name, found in all_faults(workdir).items() if found}
    assert list(faults) == ["videos/8"]
    assert faults["videos/8"][0] == "added was not part of it"
    assert "has changed since it was written" in faults["videos/8"][1]
    shard = sorted(workdir.prepared().glob("*.arrayrecord"))[1]
    flip(shard, shard.read_bytes().index(b"caption"))
    (said,) = record_faults(PreparedSet(workdir.prepared()))
    assert f"of shard {shard} is damaged" in said
    (held_out,) = workdir.heldout().glob("*.arrayrecord")
    flip(held_out, held_out.read_bytes().index(b"caption"))
    done = python("-m", "sora_jax.verify", f"--workdir={workdir.path}")
    assert done.returncode == 74, done.stderr
    versions = f"python {platform.python_version()}, jax {jax.__version__}, jaxlib"
    assert f"checkpoint videos/6: whole, saved by {versions}" in done.stdout
    assert "checkpoint videos/8: added was not part of it\n" in done.stdout
    assert "checkpoint videos/8: state/" in done.stdout
    assert "shards of main: 96 records, 1 damaged" in done.stdout
    assert re.search(r"^held-out shards of main: \d+ records, 1 damaged$", done.stdout, re.MULTILINE)
    assert f"of shard {held_out} is damaged" in done.stdout
    assert "3 parts of" in done.stderr
    assert "where shards are damaged prepare in a new --workdir" in done.stderr


def test_all_damage_is_named_also_where_no_record_can_be_read(workdir, python):
    first, *_, last = sorted(workdir.prepared().glob("*.index.npz"))
    for path in (workdir.prepared() / "header.json", first, last):
        path.write_bytes(path.read_bytes()[:9])
    (index,) = workdir.heldout().glob("*.index.npz")
    index.unlink()
    shutil.rmtree(workdir.path / "checkpoints")
    done = python("-m", "sora_jax.verify", f"--workdir={workdir.path}")
    assert done.returncode == 74, done.stderr
    damaged = re.findall(r"^(?:the index )?(\S+) is damaged", done.stdout, re.MULTILINE)
    assert damaged == [str(path) for path in (workdir.prepared() / "header.json", first, last, index)]
    assert re.findall("^(.*): no record can be read$", done.stdout, re.MULTILINE) == [
        "shards of main",
        "held-out shards of main",
    ]
    assert "4 parts of" in done.stderr


def test_shards_are_those_of_all_collections_that_have_some(tmp_path):
    workdir, settings = Workdir(tmp_path), types.SimpleNamespace(collections=("main", "more"))
    assert list(shard_folders(workdir, settings)) == []
    for folder in (workdir.prepared(), workdir.prepared("more"), workdir.heldout("more")):
        folder.mkdir(parents=True)
        (folder / "header.json").write_text("{}")
    assert list(shard_folders(workdir, settings)) == [
        ("shards of main", tmp_path / "prepared"),
        ("shards of more", tmp_path / "prepared" / "more"),
        ("held-out shards of more", tmp_path / "heldout" / "more"),
    ]


def test_training_ends_with_a_sentence_where_a_record_is_damaged(workdir, python):
    facts = workdir.facts()
    del facts["stages"]["videos"]
    workdir.write_json("run.json", {**facts, "evaluated": False})
    shutil.rmtree(workdir.checkpoints("videos"))
    shards = sorted(workdir.prepared().glob("*.arrayrecord"))
    for shard in shards:
        contents = shard.read_bytes()
        shard.write_bytes(contents.replace(b'"fps"', b'"fPs"'))
    done = python("-m", "sora_jax.main", "--config=tests/toy.py", f"--workdir={workdir.path}")
    assert done.returncode == 66, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(
        r"^DataError: record \d+ of shard .*arrayrecord is damaged .*: restore the shard from a copy",
        done.stderr,
        re.MULTILINE,
    )


def save_anew(directory, change):
    """Writes a checkpoint again after `change` of its leaves by name, with a manifest that fits."""
    tree = jax.tree.map(np.array, ocp.PyTreeCheckpointer().restore(directory / "state"))
    change(tree)
    shutil.rmtree(directory / "state")
    ocp.PyTreeCheckpointer().save(directory / "state", tree)
    manifest.write_manifest(epath.Path(directory), name=directory.name)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_leaves_that_a_config_does_not_build_and_values_that_are_not_finite_are_named(workdir, monkeypatch):
    monkeypatch.setattr("sora_jax.experiment.audit._GROUP_BYTES", 100_000)
    for other in ("autoencoder", "videos"):
        shutil.rmtree(workdir.checkpoints(other))

    def other_leaves(tree):
        params = tree["params"]
        names = sorted(params)
        del params[names[0]]
        params["more"] = np.zeros(3, np.float32)
        params[names[1]] = np.zeros((1, 2, 3), np.float32)
        params[names[2]] = params[names[2]].astype(np.float16)
        expected.extend(names[:3])

    def not_finite(tree):
        tree["ema"]["width_0.1"][expected[1]].reshape(-1)[-1] = np.nan
        tree["params"][expected[2]].reshape(-1)[0] = np.inf

    expected = []
    save_anew(workdir.checkpoints("images") / "6", other_leaves)
    save_anew(workdir.checkpoints("images") / "3", not_finite)
    faults = all_faults(workdir)
    assert set(faults["images/3"]) == {
        f"ema/width_0.1/{expected[1]} is not finite",
        f"params/{expected[2]} is not finite",
    }
    first, second, third, fourth = faults["images/6"]
    assert {first, second, third, fourth} >= {
        "params/more is not in this config's state",
        f"params/{expected[0]} is not in the checkpoint",
    }
    assert any(f"params/{expected[1]} is float32[1, 2, 3] in the checkpoint and" in line for line in faults["images/6"])
    assert any(f"params/{expected[2]} is float16[" in line for line in faults["images/6"])


def test_a_whole_run_ends_with_code_0(toy_workdir, python):
    done = python("-m", "sora_jax.verify", f"--workdir={toy_workdir}")
    assert done.returncode == 0, done.stderr
    whole = [line.split(": whole, saved by ")[0] for line in done.stdout.splitlines() if ": whole, " in line]
    assert whole == [f"checkpoint {name}" for name in CHECKPOINTS]
    assert "shards of main: 96 records, 0 damaged" in done.stdout


def test_a_folder_that_holds_no_run_is_refused(tmp_path, python):
    done = python("-m", "sora_jax.verify", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "holds no run" in done.stderr
