"""The drills are found by name, a failing one stops no other, the table is renewed row by row, and two run for real."""

import json

import pytest

from sora_jax.benchmarks.drills import table
from sora_jax.benchmarks.drills.bench import Bench
from sora_jax.benchmarks.drills.comparing import loss_difference, relative_difference
from sora_jax.benchmarks.drills.registry import DRILLS, Drill, Result, Tally
from sora_jax.benchmarks.drills.storage import flip
from sora_jax.core.errors import UserError
from tests.conftest import ROOT


def row(name, date="2026-01-02", **changes):
    values = {"passed": 2, "tried": 2, "good": True, "target": "t", "figure": "f", "seconds": 1.6}
    return {"drill": name, "date": date, **values, **changes}


def drill_of(run):
    return Drill(name="made_up", target="it holds", full=3, quick=1, run=run)


@pytest.fixture
def bench(tmp_path):
    with Bench(tmp_path, config=str(ROOT / "configs" / "base.py"), seed=0) as made:
        yield made


def test_the_rows_of_the_fault_table_have_their_drills():
    named = {"kill_random", "kill_in_save", "bit_flip", "damaged_files", "foreign_folders", "other_mesh", "disk_full"}
    named |= {"sigterm", "nan_batch", "damaged_videos", "peer_killed", "peer_stopped", "typos", "saving_cost"}
    assert named <= DRILLS.keys()
    assert [one.name for one in table.chosen(["typos", "sigterm"])] == ["typos", "sigterm"]
    assert len(table.chosen([])) == len(DRILLS)
    assert all(1 <= one.quick <= one.full for one in DRILLS.values())
    with pytest.raises(UserError, match="there is no drill typoz; there are kill_random"):
        table.chosen(["typos", "typoz"])


def test_counts_are_the_drills_own_unless_told():
    drills = table.chosen(["bit_flip", "sigterm"])
    assert table.counts_of(drills, [], quick=False) == {"bit_flip": 100, "sigterm": 10}
    assert table.counts_of(drills, ["sigterm=3"], quick=True) == {"bit_flip": 10, "sigterm": 3}
    for wrong in ("typos=3", "sigterm", "sigterm=0", "sigterm=-1"):
        with pytest.raises(UserError, match="is not NAME=TRIALS of one of bit_flip, sigterm"):
            table.counts_of(drills, [wrong], quick=False)


def test_a_drill_that_fails_is_a_row_too(bench):
    def broken(_, count):
        raise OSError(f"after {count}")

    found = table.row_of(drill_of(broken), bench, 3)
    assert (found["passed"], found["tried"], found["good"]) == (0, 3, False)
    assert found["figure"] == "not tried to the end: OSError: after 3"
    found = table.row_of(drill_of(lambda *_: Result(passed=3, tried=3, figure="well")), bench, 3)
    assert (found["passed"], found["good"], found["figure"]) == (3, True, "well")


def test_no_process_outlives_its_drill(bench):
    started = []

    def leaving(given, _):
        started.append(given.start("-c", "unused", module="http.server"))
        raise RuntimeError("left")

    table.row_of(drill_of(leaving), bench, 1)
    assert not started[0].alive


def test_trials_are_counted_with_the_first_fault():
    tally = Tally()
    for fault in ("", "one", "two"):
        tally.check(fault)
    assert not tally.result("f").good
    assert tally.result("f", enough=1).good
    assert tally.result("f") == Result(passed=1, tried=3, figure="f; first failure: one")
    assert not Result(passed=0, tried=0, figure="").good


def test_only_rows_that_ran_are_renewed():
    page = f"before\n{table.BEGIN}\n| drill |\n|---|\n{table.END}\nafter\n"
    page = table.renewed(page, [row("sigterm"), row("bit_flip", figure="a | b", passed=1, good=False)])
    page = table.renewed(page, [row("sigterm", date="2026-03-04"), row("kill_random")])
    assert page.splitlines() == [
        "before",
        table.BEGIN,
        "| drill | passed | target | figure | seconds | date |",
        "|---|---|---|---|---|---|",
        "| `kill_random` | 2 of 2 | t | f | 2 | 2026-01-02 |",
        "| `sigterm` | 2 of 2 | t | f | 2 | 2026-03-04 |",
        "| `bit_flip` | **1 of 2, missed** | t | a / b | 2 | 2026-01-02 |",
        table.END,
        "after",
    ]
    with pytest.raises(UserError, match="between which the table goes"):
        table.renewed("no table", [])


def test_the_page_has_its_place_for_the_table():
    page = (ROOT / table.PAGE).read_text()
    assert table.renewed(page, []) == page


def test_one_bit_and_one_loss_are_seen(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\0\0\0")
    flip(path, 13)
    assert path.read_bytes() == b"\0\x20\0"
    losses = {1: 2.0, 2: 4.0}
    assert loss_difference(losses, dict(losses)) == ""
    assert loss_difference(losses, {1: 2.0, 2: 4.5}) == "the loss of step 2 is 4.5, not 4.0"
    assert "losses of 1 steps" in loss_difference(losses, {1: 2.0})
    assert relative_difference(losses, {1: 2.0, 2: 4.5}) == 0.125
    assert relative_difference(losses, {1: 2.0}) == float("inf")


def test_drills_run_as_a_user_runs_them(python, tmp_path):
    path = tmp_path / "new" / "faults.json"
    page = (ROOT / table.PAGE).read_text()
    command = ["-m", "sora_jax.benchmarks.faults", "--quick", "--only=typos", f"--json={path}", "--seed=3"]
    done = python(*command, "--counts=typos=2")
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(path.read_text())
    assert written["seed"] == 3
    assert written["versions"].keys() >= {"python", "jax"}
    (found,) = written["rows"]
    assert (found["drill"], found["passed"], found["tried"]) == ("typos", 2, 2)
    assert done.stdout.startswith("ok   typos ")
    assert (ROOT / table.PAGE).read_text() == page, "--quick leaves the documentation alone"


def test_a_drill_that_falls_short_ends_the_command_with_code_1(python, tmp_path):
    """Without the base config's stages nothing that is started can work."""
    config = tmp_path / "empty.py"
    config.write_text("from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict()\n")
    done = python("-m", "sora_jax.benchmarks.faults", "--quick", "--only=same_command", f"--config={config}")
    assert done.returncode == 1, done.stderr
    assert "FAIL same_command" in done.stdout
    assert "short: same_command" in done.stdout
