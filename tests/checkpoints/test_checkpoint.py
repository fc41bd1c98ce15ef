import dataclasses
import json
import os
import random
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sora_jax.checkpoints import leaves, manifest
from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.checkpoints.reading import load_tree
from sora_jax.checkpoints.retention import CheckpointConfig, find_steps
from sora_jax.core.errors import NumericsError, StorageError, UserError

# Names of folders, as `check_names` allows them.
PLAIN = ("exp (lr=1e-3) {a,b}", "]", "50%d", "赤い丸 🐕", "e\u0301", "-a b", "a:b#c", "a\nb", "~a", "b" * 255)
DATA = {"row": 12, "fingerprint": "ab"}
CONFIG = {"model": {"width": 8, "patch": [1, 2, 2]}, "text": None}


def policy(keep: int = 2, **others: Any) -> CheckpointConfig:
    fields = {"every_minutes": None, "keep_best": 0, "keep_every_steps": None, "keep_every_hours": None, **others}
    return CheckpointConfig(**{"every_steps": 1, "keep": keep, **fields})


def make_mesh(data: int, fsdp: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: data * fsdp]
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    step: jax.Array
    params: dict
    ema: dict
    opt_state: Any


def values(seed: int = 0) -> State:
    """bf16, float32, integers and a scalar step; a dataclass with an optax state inside."""
    generator = np.random.default_rng(seed)
    params = {
        "blocks.w": jnp.asarray(generator.normal(size=(8, 16)), jnp.float32),
        "b": jnp.asarray(generator.normal(size=16), jnp.bfloat16),
    }
    ema = jax.tree.map(lambda x: x.astype(jnp.float32) * 2, params)
    optimizer = optax.adamw(1e-3).init(params)
    return State(step=jnp.int32(seed), params=params, ema=ema, opt_state=optimizer)


def sharded(state, mesh):
    def place(leaf):
        axes = P("data", "fsdp") if leaf.ndim == 2 else P()
        return jax.device_put(leaf, NamedSharding(mesh, axes))

    return jax.tree.map(place, state)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture(scope="module")
def state():
    return sharded(values(), make_mesh(2, 4))


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    """Three committed steps, 10, 20 and 30; each test works on its own copy."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpointer(directory, policy(3)) as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, state, DATA | {"row": step}, CONFIG)
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def restored_step(directory, state) -> int:
    with Checkpointer(directory, policy(3)) as checkpointer:
        restored = checkpointer.restore(abstract(state))
    assert restored is not None
    assert restored.data["row"] == restored.step
    return restored.step


def files(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


@pytest.mark.parametrize(("data", "fsdp"), [(2, 4), (8, 1), (1, 2), (1, 1)])
def test_restores_bit_for_bit_on_any_mesh(saved, state, data, fsdp):
    wanted = abstract(sharded(values(seed=1), make_mesh(data, fsdp)))
    with Checkpointer(saved, policy(3)) as checkpointer:
        restored = checkpointer.restore(wanted)
    assert restored is not None
    assert (restored.step, restored.data, restored.config) == (30, {"row": 30, "fingerprint": "ab"}, CONFIG)
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    for got, put, want in zip(
        jax.tree.leaves(restored.state), jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True
    ):
        assert got.dtype == put.dtype
        assert got.sharding.is_equivalent_to(want.sharding, got.ndim)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(put))


def test_a_save_is_a_snapshot_of_donated_state(tmp_path):
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = sharded({"w": jnp.zeros((512, 512))}, make_mesh(2, 4))
    want = abstract(tree)
    with Checkpointer(tmp_path, policy(4)) as checkpointer:
        for step in range(4):
            checkpointer.save(step, tree, {}, {})
            tree = add(tree)
        for step in range(4):
            checkpointer.wait()
            loaded = load_tree(tmp_path, want, step=step)
            np.testing.assert_array_equal(np.asarray(loaded.state["w"]), step)


def test_one_flipped_bit_in_any_file_is_found(directory, state):
    generator = random.Random(0)
    for path in files(directory / "30"):
        content = path.read_bytes()
        if not content:
            continue
        place, bit = generator.randrange(len(content)), generator.randrange(8)
        flipped = bytes([content[place] ^ (1 << bit)])
        path.write_bytes(content[:place] + flipped + content[place + 1 :])
        assert restored_step(directory, state) == 20, path
        path.write_bytes(content)
    assert restored_step(directory, state) == 30


def test_truncated_missing_added_and_linked_files_are_found(directory, state, caplog):
    def truncate(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1])

    def link(path: Path) -> None:
        path.rename(directory / "elsewhere")
        path.symlink_to(directory / "elsewhere")

    def add(path: Path) -> None:
        (path.parent / "added").write_text("x")

    for damage in (truncate, Path.unlink, link, add):
        step = directory / "30"
        shutil.copytree(step, directory / "copy")
        path = max((step / "state").rglob("d/*"), key=lambda x: x.stat().st_size)
        damage(path)
        caplog.clear()
        assert restored_step(directory, state) == 20, damage
        named = "added" if damage is add else path.name
        assert any("step 30" in line and named in line for line in caplog.messages), damage
        shutil.rmtree(step)
        (directory / "copy").rename(step)
    assert restored_step(directory, state) == 30


def test_notes_of_orbax_are_removed_and_not_needed(directory, state):
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        assert not any((directory / step / name).exists() for step in ("10", "20", "30"))
        (directory / "30" / name).write_text("{")  # as after a kill in between
    assert restored_step(directory, state) == 30


def test_falls_back_over_several_steps_and_never_starts_afresh(directory, state):
    (directory / "30" / "manifest.json").unlink()
    (directory / "20" / "config" / "metadata").write_text("{}")
    assert restored_step(directory, state) == 10
    shutil.rmtree(directory / "10" / "data")
    with pytest.raises(StorageError, match="none of the 3 checkpoints"):
        restored_step(directory, state)
    with pytest.raises(StorageError, match="none of the 3 checkpoints"):
        load_tree(directory, abstract(state))


def test_foreign_directories_are_ignored_and_unfinished_saves_removed(directory, state):
    for name in ("notes", "010", "40.backup", "999", "50.orbax-checkpoint-tmp"):
        (directory / name).mkdir()
    (directory / "70").write_text("a file")
    shutil.copytree(directory / "30", directory / "60")
    os.symlink(directory / "30", directory / "80")
    assert restored_step(directory, state) == 30
    left = {path.name for path in directory.iterdir()}
    assert left == {"10", "20", "30", "notes", "010", "40.backup", "999", "60", "70", "80"}


def test_a_removal_that_was_cut_short_leaves_nothing_after_the_next_start(directory, state, monkeypatch):
    def cut_short(path, **_):
        (path / manifest.MANIFEST).unlink()
        raise OSError("killed")

    with monkeypatch.context() as patch, Checkpointer(directory, policy(1)) as checkpointer:
        patch.setattr(type(epath.Path(directory)), "rmtree", cut_short)
        checkpointer.save(40, state, {"row": 40}, CONFIG)
    assert find_steps(epath.Path(directory)) == [40], "no step that is half there"
    assert restored_step(directory, state) == 40
    assert {path.name for path in directory.iterdir()} == {"40"}


def test_nothing_saved_is_none(tmp_path, state):
    with Checkpointer(tmp_path / "new", policy(1)) as checkpointer:
        assert checkpointer.restore(abstract(state)) is None
    with pytest.raises(UserError, match="no checkpoint in"):
        load_tree(tmp_path / "new", abstract(state))
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="no checkpoint in"):
        load_tree(tmp_path / "other", abstract(state))


def test_differing_leaves_are_refused_by_name(saved, state):
    def change(name, **leaf):
        wanted = abstract(state)
        old = wanted.params["blocks.w"]
        new = jax.ShapeDtypeStruct(leaf.get("shape", old.shape), leaf.get("dtype", old.dtype), sharding=old.sharding)
        return dataclasses.replace(wanted, params=wanted.params | {name: new})

    missing = abstract(state)
    del missing.params["b"]
    cases = [
        (change("blocks.w", dtype=jnp.bfloat16), r"params/blocks.w is float32\[8, 16\] .* bfloat16\[8, 16\]"),
        (change("blocks.w", shape=(8, 32)), r"params/blocks.w is float32\[8, 16\] .* float32\[8, 32\]"),
        (change("u"), "params/u is not in the checkpoint"),
        (missing, "params/b is not in this config's state"),
    ]
    with Checkpointer(saved, policy(3)) as checkpointer:
        for wanted, message in cases:
            with pytest.raises(UserError, match=message):
                checkpointer.restore(wanted)


def test_load_tree_reads_a_part(saved, state):
    wanted = {"ema": abstract(sharded(values().ema, make_mesh(1, 1)))}
    restored = load_tree(saved, wanted, step=20)
    assert restored.step == 20
    assert restored.config == CONFIG
    assert jax.tree.structure(restored.state) == jax.tree.structure(wanted)
    np.testing.assert_array_equal(np.asarray(restored.state["ema"]["blocks.w"]), np.asarray(state.ema["blocks.w"]))
    with pytest.raises(UserError, match="no checkpoint of step 25"):
        load_tree(saved, wanted, step=25)


def test_keeps_the_newest_and_never_counts_a_damaged_one(tmp_path, state):
    with Checkpointer(tmp_path, policy(2)) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, state, {"row": step}, CONFIG)
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}
    (tmp_path / "3" / "data" / "metadata").write_text("{}")
    with Checkpointer(tmp_path, policy(1)) as checkpointer:
        restored = checkpointer.restore(abstract(state))
        assert restored is not None
        assert restored.step == 2
        checkpointer.save(2, state, {"row": 99}, CONFIG)
        checkpointer.wait()
        assert load_tree(tmp_path, abstract(state), step=2).data == {"row": 2}
        checkpointer.save(3, state, {"row": 3}, CONFIG)
    assert {path.name for path in tmp_path.iterdir()} == {"3"}
    assert restored_step(tmp_path, state) == 3


def test_a_failed_save_is_told_and_the_last_good_step_stays(tmp_path, state, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    checkpointer = Checkpointer(tmp_path, policy(1))
    checkpointer.save(1, state, {"row": 1}, CONFIG)
    checkpointer.wait()
    with monkeypatch.context() as patch:
        patch.setattr("sora_jax.checkpoints.manifest._digests", full)
        checkpointer.save(2, state, {"row": 2}, CONFIG)
        with pytest.raises(StorageError, match=r"step 2 was not saved .*No space left"):
            checkpointer.wait()
    checkpointer.poll()
    checkpointer.close()
    assert restored_step(tmp_path, state) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"1"}


def test_no_file_is_digested_twice(tmp_path, state, monkeypatch):
    read, digest = [], manifest._digest
    monkeypatch.setattr(manifest, "_digest", lambda path: read.append(path.name) or digest(path))
    with Checkpointer(tmp_path, policy(1)) as checkpointer:
        checkpointer.save(1, state, {"row": 1}, CONFIG)
    written = json.loads((tmp_path / "1" / "manifest.json").read_text())["sha256"]
    assert sorted(read) == sorted(Path(name).name for name in written)
    assert any(name.startswith("state/ocdbt.process_0/") for name in written)


@pytest.mark.parametrize("name", ["exp [lr=1e-3]", "a\\b"])
def test_what_cannot_be_read_back_is_not_called_saved(tmp_path, state, monkeypatch, caplog, name):
    """With these names orbax leaves out the file that joins the arrays, and says that it has saved them."""
    caplog.set_level("INFO")
    monkeypatch.setattr("sora_jax.checkpoints.checkpoint._PAUSES", (0.0,))
    with (
        Checkpointer(tmp_path / name, policy(1)) as checkpointer,
        pytest.raises(StorageError, match=r"step 1 was not saved .* it cannot be read back: .* try 2 in a row"),
    ):
        checkpointer.save(1, state, {}, CONFIG, settle=True)
    assert saved_lines(caplog) == []
    assert list((tmp_path / name).iterdir()) == []


def test_an_array_that_is_missing_before_the_commit_is_named(tmp_path, state, monkeypatch):
    monkeypatch.setattr("sora_jax.checkpoints.checkpoint._PAUSES", ())
    names = leaves.nested

    def without_one(tree):
        found = names(tree)
        del found["params"]["b"]
        return found

    monkeypatch.setattr(leaves, "nested", without_one)
    with (
        Checkpointer(tmp_path, policy(1)) as checkpointer,
        pytest.raises(StorageError, match=r"cannot be read back: params/b is not in the checkpoint"),
    ):
        checkpointer.save(1, state, {}, CONFIG, settle=True)


@pytest.mark.parametrize("name", PLAIN)
def test_folders_of_any_other_name_hold_checkpoints(tmp_path, name):
    """What `check_names` allows must work."""
    small = {"w": jnp.arange(6.0)}
    with Checkpointer(tmp_path / name, policy(1)) as checkpointer:
        checkpointer.save(1, small, {"row": 1}, CONFIG)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {"w": jax.ShapeDtypeStruct((6,), jnp.float32, sharding=place)}
    np.testing.assert_array_equal(np.asarray(load_tree(tmp_path / name, wanted).state["w"]), np.arange(6.0))


class FileLimit:
    """Lets no file grow beyond a size: writes fail as on a full disk, in C++ as well."""

    def __init__(self, size: int):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.fixture(scope="module")
def large():
    return {"w": jnp.asarray(np.random.default_rng(0).normal(size=(512, 512)), jnp.float32)}


def saved_lines(caplog) -> list[str]:
    return [line for line in caplog.messages if line.startswith("saved the checkpoint")]


def test_a_save_that_fails_is_told_cleaned_up_and_made_good_by_a_later_step(tmp_path, large, caplog):
    caplog.set_level("INFO")
    with Checkpointer(tmp_path, policy(1)) as checkpointer:
        checkpointer.save(1, large, {}, CONFIG)
        checkpointer.wait()
        with FileLimit(100_000):
            checkpointer.save(2, large, {}, CONFIG)
            until = time.monotonic() + 30
            while not any("step 2 was not saved" in line for line in caplog.messages):
                checkpointer.poll()
                assert time.monotonic() < until
                time.sleep(0.01)
        assert [path.name for path in tmp_path.iterdir()] == ["1"], "the disk is freed"
        assert checkpointer.due(3), "whatever the step is"
        assert checkpointer.newest == 1
        checkpointer.save(3, large, {}, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    assert saved_lines(caplog) == ["saved the checkpoint of step 1", "saved the checkpoint of step 3"]


def test_later_tries_wait_and_the_last_one_ends_the_run(tmp_path, large, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("sora_jax.checkpoints.checkpoint._PAUSES", (0.0, 0.2, 0.3))
    with Checkpointer(tmp_path, policy(1, every_steps=100)) as checkpointer:
        checkpointer.save(1, large, {}, CONFIG)
        checkpointer.wait()
        tried = []

        def run() -> None:
            for step in range(2, 10_000):
                checkpointer.poll()
                if step == 2 or checkpointer.due(step):
                    tried.append((step, time.monotonic()))
                    checkpointer.save(step, large, {}, CONFIG)
                time.sleep(0.01)

        with FileLimit(100_000), pytest.raises(StorageError, match=r"step \d+ was not saved .* try 4 in a row"):
            run()
    times = [at for _, at in tried]
    assert len(tried) == 4
    assert times[2] - times[1] > 0.2
    assert times[3] - times[2] > 0.3
    assert len(saved_lines(caplog)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_the_last_save_is_tried_again_in_its_place(tmp_path, state, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("sora_jax.checkpoints.checkpoint._PAUSES", (0.0, 0.01, 0.02))
    failures = iter([OSError(28, "No space left on device"), ValueError("OUT_OF_RANGE"), None])
    save = ocp.AsyncCheckpointer.save

    def flaky(self, *args, **kwargs):
        if error := next(failures, None):
            raise error
        save(self, *args, **kwargs)

    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", flaky)
    with Checkpointer(tmp_path, policy(1)) as checkpointer:
        checkpointer.save(7, state, {"row": 7}, CONFIG, settle=True)
        assert restored_step(tmp_path, state) == 7
    assert sum("it is tried again" in line for line in caplog.messages) == 2
    assert saved_lines(caplog) == ["saved the checkpoint of step 7"]
    failures = iter([OSError(28, "No space left on device")] * 9)
    with (
        Checkpointer(tmp_path, policy(1)) as checkpointer,
        pytest.raises(StorageError, match=r"step 8 was not saved .* try 4"),
    ):
        checkpointer.save(8, state, {"row": 8}, CONFIG, settle=True)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, state):
    broken = dataclasses.replace(state, ema=state.ema | {"b": state.ema["b"].at[3].set(jnp.inf)})
    with Checkpointer(tmp_path, policy(1)) as checkpointer:
        with pytest.raises(NumericsError, match=r"after step 4 is not finite, .*: ema/b; the last checkpoint"):
            checkpointer.save(4, broken, {}, CONFIG)
        checkpointer.save(5, state, {"row": 5}, CONFIG)
    assert {path.name for path in tmp_path.iterdir()} == {"5"}


def test_a_save_is_due_by_steps_and_by_time(tmp_path, state, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("sora_jax.checkpoints.checkpoint.time.monotonic", lambda: now[0])
    with Checkpointer(tmp_path / "steps", policy(every_steps=3)) as checkpointer:
        now[0] += 1e6
        assert [checkpointer.due(step) for step in range(1, 7)] == [False, False, True] * 2
    with Checkpointer(tmp_path / "time", policy(every_steps=3, every_minutes=2.0)) as checkpointer:
        now[0] += 119
        assert [checkpointer.due(step) for step in (1, 2, 3)] == [False, False, True]
        now[0] += 2
        assert checkpointer.due(1)
        checkpointer.save(1, state, {}, CONFIG)
        checkpointer.wait()
        assert not checkpointer.due(2)


def test_other_versions_are_one_warning(directory, state, caplog):
    assert restored_step(directory, state) == 30
    assert not [line for line in caplog.messages if "bit for bit" in line]
    path = directory / "30" / "record" / "metadata"
    record = json.loads(path.read_text())
    assert record["versions"]["jax"] == jax.__version__
    record["versions"] |= {"jax": "0.0.1", "grain": "0.0.2"}
    path.write_text(json.dumps(record))
    manifest.write_manifest(epath.Path(directory / "30"), name="30")
    assert restored_step(directory, state) == 30
    (line,) = [line for line in caplog.messages if "bit for bit" in line]
    assert line.endswith(f"step 30 may not be continued bit for bit: jax 0.0.1 is now {jax.__version__}")


def test_what_has_no_room_is_refused_before_it_is_written(tmp_path, state):
    huge = {"w": jax.ShapeDtypeStruct((1 << 40, 1 << 10), jnp.float32)}
    with Checkpointer(tmp_path, policy(2, keep_best=1)) as checkpointer:
        checkpointer.check_room(abstract(state))
        with pytest.raises(
            StorageError, match=r"4 more checkpoints of 4503599\.63 GB need .* free so much, keep fewer"
        ):
            checkpointer.check_room(huge)
        for step in (1, 2):
            checkpointer.save(step, state, {}, CONFIG)
        checkpointer.wait()
        with pytest.raises(StorageError, match="2 more checkpoints"):
            checkpointer.check_room(huge)
    with (
        Checkpointer(tmp_path, policy(2, keep_best=1), 5) as checkpointer,
        pytest.raises(StorageError, match="4 more checkpoints"),
    ):
        checkpointer.check_room(huge)


def test_a_failure_at_the_end_is_raised_but_hides_no_other_exception(tmp_path, state, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sora_jax.checkpoints.manifest._digests", full)

    def run(*, interrupted: bool) -> None:
        with Checkpointer(tmp_path, policy(1)) as checkpointer:
            checkpointer.save(2, state, {}, CONFIG)
            if interrupted:
                raise KeyboardInterrupt

    with pytest.raises(StorageError, match="No space left"):
        run(interrupted=False)
    with pytest.raises(KeyboardInterrupt):
        run(interrupted=True)


def test_the_manifest_is_there_when_the_step_is(saved):
    written = json.loads((saved / "30" / "manifest.json").read_text())
    names = {path.relative_to(saved / "30").as_posix() for path in files(saved / "30")} - {"manifest.json"}
    assert set(written["sha256"]) == names
    assert written["name"] == "30"


def test_bad_places_are_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be written"):
        Checkpointer(tmp_path / "file", policy(1))
