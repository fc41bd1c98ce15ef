"""The record of a failure: what it says, when it is written, and when it goes."""

import json
import time

import pytest

from sora_jax.core import errors, failure
from sora_jax.core.failure import at, record, record_abort, recorded


def read(folder, name="failure.json"):
    return json.loads((folder / name).read_text())


def fail(folder, error, *, process=0):
    def work():
        with recorded(folder, process=process, processes=2):
            at(stage="videos")
            at(step=812)
            raise error

    with pytest.raises(type(error)):
        work()


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UserError, 2),
        (errors.NumericsError, 65),
        (errors.DataError, 66),
        (errors.StorageError, 74),
        (errors.PeerLost, 75),
        (errors.Preempted, 85),
    ],
)
def test_a_known_end_is_recorded_in_its_sentence(tmp_path, kind, code):
    fail(tmp_path, kind("it broke:\n  in two lines"))
    found = read(tmp_path)
    versions, when = found.pop("versions"), found.pop("time")
    assert found == {
        "code": code,
        "kind": kind.__name__,
        "cause": "it broke: in two lines",
        "stage": "videos",
        "step": 812,
        "process": 0,
        "what_to_do": kind.what_to_do,
    }
    assert {"python", "jax", "orbax-checkpoint"} <= versions.keys()
    assert abs(time.time() - time.mktime(time.strptime(when, "%Y-%m-%dT%H:%M:%SZ")) + time.timezone) < 60


def test_a_fault_of_ours_is_recorded_with_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN", "nobody-may-see-this")
    fail(tmp_path, ZeroDivisionError("a division"), process=1)
    found = read(tmp_path, "failure-1.json")
    assert (found["code"], found["cause"], found["process"]) == (70, "ZeroDivisionError: a division", 1)
    assert found["traceback"][0].startswith("Traceback")
    assert found["traceback"][-1] == "ZeroDivisionError: a division"
    assert "nobody-may-see-this" not in (tmp_path / "failure-1.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["failure-1.json"]


def test_an_interrupt_has_the_code_of_a_shell(tmp_path):
    fail(tmp_path, KeyboardInterrupt())
    assert (read(tmp_path)["code"], read(tmp_path)["cause"]) == (130, "KeyboardInterrupt")


def test_every_code_says_what_to_do():
    sentences = {code: errors.what_to_do(code) for code in (2, 3, 65, 66, 70, 74, 75, 85)}
    assert len(set(sentences.values())) == 8
    assert all(text.endswith(".") and text.count(". ") == 0 for text in sentences.values())


def test_the_record_stays_until_a_run_ends_well(tmp_path):
    for process in range(4):
        fail(tmp_path, errors.DataError("torn"), process=process)
    fail(tmp_path, errors.StorageError("full"))
    assert read(tmp_path)["code"] == 74
    with recorded(tmp_path, process=0, processes=2):
        assert read(tmp_path)["code"] == 74, "the last one, while the next run is under way"
    assert [path.name for path in tmp_path.iterdir()] == ["failure-1.json"], "that of another process is its own"


def test_a_run_that_holds_no_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    at(stage="videos")
    record(errors.DataError("torn"))
    record_abort()
    fail(tmp_path, errors.DataError("torn"))
    (tmp_path / "failure.json").unlink()
    record(errors.DataError("later"))
    record_abort()
    assert not list(tmp_path.iterdir())


def test_an_abort_writes_what_was_prepared(tmp_path):
    with recorded(tmp_path, process=1, processes=2):
        at(stage="images", step=3)
        before = failure._keeper.prepared
        record_abort()
        found = read(tmp_path, "failure-1.json")
    assert before.replace(b"0000-00-00T00:00:00Z", found["time"].encode()) == json.dumps(found, indent=2).encode()
    assert (found["code"], found["kind"], found["stage"], found["step"]) == (75, "PeerLost", "images", 3)
    assert found["time"] > "2026"


def test_a_folder_that_is_gone_does_not_hide_the_reason(tmp_path):
    fail(tmp_path / "gone", errors.StorageError("the disk is full"))
    assert not list(tmp_path.iterdir())
