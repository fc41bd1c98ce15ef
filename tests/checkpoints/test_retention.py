"""Which checkpoints stay: the choice by itself, and on a disk where some are damaged."""

import json
import shutil

import pytest
from etils import epath

from sora_jax.checkpoints import manifest
from sora_jax.checkpoints.retention import CheckpointConfig, Record, Retention, read_record, steps_to_keep
from sora_jax.core.errors import UserError

HOUR = 3600.0


def policy(**fields):
    off = {"every_minutes": None, "keep_best": 0, "keep_every_steps": None, "keep_every_hours": None}
    return CheckpointConfig(**{"every_steps": 10, "keep": 1, **off, **fields})


def records(*losses, minutes=10):
    """Steps 10, 20, ..., saved so many minutes apart from an hour's first minute on."""
    return [
        Record(step=10 * n, loss=loss, time=480_000 * HOUR + 60 * minutes * n) for n, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize(
    ("fields", "stay"),
    [
        ({}, {80}),
        ({"keep": 3}, {60, 70, 80}),
        ({"keep": 99}, {10, 20, 30, 40, 50, 60, 70, 80}),
        ({"keep_best": 1}, {30, 80}),
        ({"keep_best": 2}, {30, 60, 80}),
        ({"keep": 3, "keep_best": 2}, {30, 60, 70, 80}),
        ({"keep_every_steps": 20}, {20, 40, 60, 80}),
        ({"keep_every_steps": 50}, {50, 80}),
        ({"keep_every_hours": 0.5}, {10, 30, 60, 80}),
        ({"keep_every_hours": 1.0}, {10, 60, 80}),
        ({"keep_best": 1, "keep_every_steps": 40, "keep_every_hours": 1.0}, {10, 30, 40, 60, 80}),
    ],
)
def test_what_stays(fields, stay):
    found = records(5.0, None, 1.0, 3.0, 4.0, 2.0, 3.0, 6.0)
    assert steps_to_keep(found, policy(**fields)) == stay
    assert steps_to_keep(list(reversed(found)), policy(**fields)) == stay


def test_of_equal_losses_the_newest_is_best_and_none_is_no_loss():
    assert steps_to_keep(records(1.0, 1.0, 2.0), policy(keep_best=1)) == {20, 30}
    assert steps_to_keep(records(None, None), policy(keep_best=5)) == {20}
    assert steps_to_keep([], policy(keep_best=5, keep_every_hours=1.0)) == set()


def test_what_stays_for_ever_stays_as_the_run_goes_on():
    """Choosing after each save, from what the last choice left, keeps what one choice among all would."""
    fields = policy(keep=2, keep_best=2, keep_every_steps=70, keep_every_hours=1.5)
    everything = records(*[abs(n - 17.3) for n in range(40)])
    left = []
    for record in everything:
        left.append(record)
        stay = steps_to_keep(left, fields)
        left = [one for one in left if one.step in stay]
    assert {one.step for one in left} == steps_to_keep(everything, fields)


@pytest.mark.parametrize("every", [10, 30, 70, 250])
def test_a_rewind_finds_one_that_is_old_enough_and_not_much_older(every):
    """Saves come in pairs, as before samples; at most two stay beside the newest one."""
    left, back = [], 100
    for step in sorted({*range(every, 3000, every), *range(480, 3000, 480)}):
        left.append(Record(step=step, loss=None, time=480_000 * HOUR))
        stay = steps_to_keep(left, policy(), back)
        left = [one for one in left if one.step in stay]
        assert len(left) <= 3
        old = [one.step for one in left if one.step <= step + 1 - back]
        assert step <= back + every or (old and step - max(old) <= 2 * (back + every))


def test_a_damaged_one_is_not_what_a_rewind_counts_on(tmp_path):
    for record in records(*[None] * 6):
        checkpoint(tmp_path, record)
    (tmp_path / "30" / "added").write_text("x")
    retention = Retention(epath.Path(tmp_path), policy(), 31)
    retention.prune(60)
    retention.close()
    assert left(tmp_path) == {20, 30, 40, 60}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keep": 0}, "keep is 0"),
        ({"keep_best": -1}, "keep_best -1 is negative"),
        ({"keep_every_steps": 15}, "keep_every_steps 15 must be a multiple of every_steps 10"),
        ({"keep_every_steps": 0}, "keep_every_steps 0 must be"),
        ({"keep_every_hours": 0.0}, "keep_every_hours 0 must be more than 0, or None"),
        ({"every_minutes": -1.0}, "every_minutes -1 must be more than 0, or None"),
    ],
)
def test_what_cannot_be_is_refused(fields, said):
    with pytest.raises(UserError, match=said):
        policy(**fields)


def checkpoint(root, record):
    """Writes what stands for a checkpoint."""
    directory = epath.Path(root / str(record.step))
    (directory / "record").mkdir(parents=True)
    (directory / "record" / "metadata").write_text(json.dumps(record.facts()))
    manifest.write_manifest(directory, name=str(record.step))
    return directory


def left(root):
    return {int(path.name) for path in root.iterdir() if path.name.isdecimal()}


def prune(root, fields, newest, *, good=()):
    retention = Retention(epath.Path(root), fields)
    retention.good |= set(good)
    retention.prune(newest)
    retention.close()
    return retention


def test_records_are_read_back_and_what_has_none_is_left_alone(tmp_path):
    found = records(3.0, 1.0, 2.0, 4.0)
    for record in found:
        checkpoint(tmp_path, record)
    (tmp_path / "5").mkdir()
    shutil.copytree(tmp_path / "10", tmp_path / "60")
    assert read_record(epath.Path(tmp_path / "20")) == found[1]
    assert read_record(epath.Path(tmp_path / "5")) is None
    prune(tmp_path, policy(keep=2, keep_best=1), 40)
    assert left(tmp_path) == {5, 20, 30, 40, 60}, "foreign ones, and those beyond the newest, are not ours to remove"


@pytest.mark.parametrize(
    ("fields", "damaged", "stay"),
    [
        ({"keep": 2}, {30}, {20, 30, 40}),
        ({"keep": 2}, {20, 30}, {10, 20, 30, 40}),
        ({"keep_best": 1}, {20}, {20, 30, 40}),
        ({"keep_every_hours": 2.0}, {10}, {10, 20, 40}),
        ({"keep": 2}, {10}, {30, 40}),
    ],
)
def test_a_damaged_step_takes_no_place_of_a_good_one(tmp_path, fields, damaged, stay):
    for record in records(3.0, 1.0, 2.0, 4.0):
        checkpoint(tmp_path, record)
    for step in damaged:
        (tmp_path / str(step) / "added").write_text("x")
    prune(tmp_path, policy(**fields), 40)
    assert left(tmp_path) == stay


def test_what_this_process_saved_is_not_read_again(tmp_path, monkeypatch):
    for record in records(3.0, 1.0, 2.0, 4.0):
        checkpoint(tmp_path, record)
    read = []
    monkeypatch.setattr(manifest, "distrust", lambda directory: read.append(int(directory.name)))
    prune(tmp_path, policy(keep=2), 40, good=[30])
    assert read == []
    for record in records(3.0, 1.0, 2.0, 4.0, 5.0)[:1]:
        checkpoint(tmp_path, record)
    prune(tmp_path, policy(keep=2), 40)
    assert read == [30]
