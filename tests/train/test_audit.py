"""What a run wrote is checked to the last byte and the last record."""

import re
import shutil

import pytest

from sora_jax.data.shards import PreparedSet
from sora_jax.train.audit import checkpoint_faults, record_faults
from sora_jax.train.workdir import Workdir


@pytest.fixture
def workdir(toy_workdir, tmp_path):
    return Workdir(shutil.copytree(toy_workdir, tmp_path / "toy"))


def flip(path, offset):
    contents = bytearray(path.read_bytes())
    contents[offset] ^= 1
    path.write_bytes(contents)


def test_a_run_that_nobody_touched_is_whole(workdir):
    faults = dict(checkpoint_faults(workdir))
    assert list(faults)[:2] == ["autoencoder/6", "autoencoder/8"]
    assert {name.split("/")[0] for name in faults} == {"autoencoder", "images", "videos"}
    assert set(faults.values()) == {None}
    seen = []
    assert record_faults(PreparedSet(workdir.prepared()), progress=seen.append) == []
    assert seen == [96]


def test_one_flipped_bit_is_named(workdir, python):
    block = max((workdir.checkpoints("videos") / "8").rglob("*"), key=lambda path: path.stat().st_size)
    flip(block, block.stat().st_size // 2)
    faults = {name: fault for name, fault in checkpoint_faults(workdir) if fault}
    assert list(faults) == ["videos/8"]
    assert "has changed since it was written" in faults["videos/8"]
    shard = sorted(workdir.prepared().glob("*.arrayrecord"))[1]
    flip(shard, shard.read_bytes().index(b"caption"))
    (said,) = record_faults(PreparedSet(workdir.prepared()))
    assert f"of shard {shard} is damaged" in said
    done = python("-m", "sora_jax.verify", f"--workdir={workdir.path}")
    assert done.returncode == 74, done.stderr
    assert "checkpoint videos/6: whole" in done.stdout
    assert "checkpoint videos/8: state/" in done.stdout
    assert "shards of main: 96 records, 1 damaged" in done.stdout
    assert "2 parts of" in done.stderr


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
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"DataError: record \d+ of shard .*arrayrecord is damaged .*: restore the shard from a copy", last)


def test_a_whole_run_ends_with_code_0(toy_workdir, python):
    done = python("-m", "sora_jax.verify", f"--workdir={toy_workdir}")
    assert done.returncode == 0, done.stderr
    assert "shards of main: 96 records, 0 damaged" in done.stdout


def test_a_folder_that_holds_no_run_is_refused(tmp_path, python):
    done = python("-m", "sora_jax.verify", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "holds no run" in done.stderr
