"""The supervisor: which ends are started again, how long it waits, and when it gives up."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sora_jax import supervise
from sora_jax.supervise import Supervisor, got_on, meaning, progress, table_of, workdir_of

# Ends with the next of the codes in a file; a word of letters is a signal to itself, "+" a checkpoint before, "=" a
# row of captions.
CHILD = """
import os, pathlib, signal, sys
workdir = pathlib.Path(sys.argv[1].partition("=")[2])
codes = (workdir / "codes").read_text().split()
(workdir / "codes").write_text(" ".join(codes[1:]))
code = codes[0]
if code.startswith("+"):
    step = workdir / "checkpoints" / "videos" / str(100 - len(codes))
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    code = code[1:]
if code.startswith("="):
    with (workdir / "rows.jsonl").open("a") as rows:
        rows.write("{}\\n")
    code = code[1:]
if code.isdecimal():
    os._exit(int(code))
os.kill(os.getpid(), getattr(signal, code))
"""


@pytest.fixture
def supervised(tmp_path, monkeypatch, capfd):
    """Returns a function that runs the child to its codes: (exit code, codes that are left, lines said)."""
    monkeypatch.setattr(supervise, "_FIRST_PAUSE", 0.001)
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(codes, *, restarts=None, patience=3, words=()):
        (tmp_path / "codes").write_text(codes)
        command = [sys.executable, "-c", CHILD, f"--workdir={tmp_path}", *words]
        code = Supervisor(command, restarts=restarts, patience=patience).run()
        return code, (tmp_path / "codes").read_text().split(), capfd.readouterr().err.splitlines()

    yield run
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("code", [0, 2, 3, 65, 66, 70, 74])
def test_an_end_that_starting_again_cannot_mend_is_the_end(supervised, code):
    assert supervised(f"{code} 0") == (code, ["0"], [f"supervise: ended with code {code}: not started again"])


@pytest.mark.parametrize(
    "code", ["75", "85", "134", "137", "143", "SIGABRT", "SIGSEGV", "SIGBUS", "SIGKILL", "SIGTERM"]
)
def test_an_end_that_asks_for_it_is_started_again(supervised, code):
    done, left, said = supervised(f"{code} 0 1")
    assert (done, left, len(said)) == (0, ["1"], 2)
    assert said[0].endswith(": restart 1 in 0.001 s")


def test_it_gives_up_when_nothing_gets_on(supervised):
    done, left, said = supervised("75 SIGKILL 85 75 0")
    assert (done, left) == (75, ["0"])
    assert said == [
        "supervise: ended with code 75: restart 1 in 0.001 s",
        "supervise: killed by SIGKILL (out of memory?), which counts as 75: restart 2 in 0.002 s",
        "supervise: ended with code 85: restart 3 in 0.004 s",
        "supervise: ended with code 75, and 3 restarts in a row brought nothing new: given up",
    ]


def test_a_newer_checkpoint_is_getting_on(supervised):
    done, left, said = supervised("75 75 +75 75 75 75 0", patience=3)
    assert (done, left) == (75, ["0"])
    pauses = [float(line.split(" in ")[1].split()[0]) for line in said[:-1]]
    assert pauses == [0.001, 0.002, 0.001, 0.002, 0.004]


def test_another_row_of_captions_is_getting_on(supervised, tmp_path):
    words = ["sora_jax.recaption", f"--output={tmp_path / 'rows.jsonl'}"]
    assert supervised("=75 =75 =75 =75 0", patience=2, words=words)[:2] == (0, [])
    assert supervised("75 75 75 0", patience=2, words=words)[:2] == (75, ["0"])


def test_restarts_are_bounded_when_told_so(supervised):
    done, left, said = supervised("+75 +75 +75 0", restarts=2)
    assert (done, left) == (75, ["0"])
    assert said[-1] == "supervise: ended with code 75 after 2 restarts, the most that --restarts allows: given up"
    assert supervised("75 0", restarts=0)[:2] == (75, ["0"])


def test_pauses_have_a_longest(supervised, monkeypatch):
    monkeypatch.setattr(supervise, "_LONGEST_PAUSE", 0.003)
    said = supervised("75 75 75 75 0", patience=9)[2]
    assert [line.split(" in ")[1] for line in said[:-1]] == ["0.001 s", "0.002 s", "0.003 s", "0.003 s"]


def test_what_a_status_means():
    assert meaning(66) == ("ended with code 66", 66)
    assert meaning(-6) == ("killed by SIGABRT, which counts as 75", 75)
    assert meaning(139) == ("killed by SIGSEGV, which counts as 75", 75)
    assert meaning(-2) == ("killed by SIGINT, which counts as 85", 85)
    assert meaning(-8) == ("killed by SIGFPE, which counts as 136", 136)
    assert meaning(255) == ("ended with code 255", 255)


def test_the_workdir_is_read_from_the_flags():
    assert workdir_of(["a", "--workdir=runs/a", "--workdir", "runs/b c"]) == Path("runs/b c")
    assert workdir_of(["a", "-workdir=runs/a", "--workdirs=no"]) == Path("runs/a")
    assert workdir_of(["a", "--workdir", "~/runs/a"]) == Path.home() / "runs/a"
    assert workdir_of(["a", "--config=x"]) is None
    assert progress(None, None) == {}


def test_getting_on_is_more_of_anything(tmp_path):
    assert progress(tmp_path / "not yet", None) == {"shards": 0}
    for name in ("checkpoints/videos/8/manifest.json", "checkpoints/videos/12/manifest.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "checkpoints/videos/99").mkdir()
    for folder in ("prepared", "prepared/other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.arrayrecord").write_text("")
    assert progress(tmp_path, None) == {"shards": 2, "checkpoints/videos": 12}
    assert got_on({"shards": 2}, progress(tmp_path, None))
    assert not got_on(progress(tmp_path, None), {"shards": 2, "checkpoints/videos": 8})


def test_runs_of_a_study_are_its_progress(tmp_path):
    for name in ("native/checkpoints/videos/8", "square/checkpoints/videos/12"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "native" / "prepared").mkdir()
    (tmp_path / "native" / "prepared" / "a.arrayrecord").write_text("")
    reached = {"shards": 1, "native/checkpoints/videos": 8, "square/checkpoints/videos": 12}
    assert progress(tmp_path, None) == reached


def test_rows_of_captions_and_failures_are_the_progress_of_recaption(tmp_path):
    table = tmp_path / "new.jsonl"
    assert progress(None, table) == {"rows": 0}
    table.write_text('{"file": "a.mp4"}\n')
    began = progress(None, table)
    (tmp_path / "new.failed.jsonl").write_text('{"file": "b.mp4"}\n')
    assert (began, progress(None, table)) == ({"rows": 1}, {"rows": 2})
    assert got_on(began, progress(None, table))


def test_the_table_is_that_of_recaption_alone():
    recaption = ["python", "-m", "sora_jax.recaption", "--workdir=runs/captions"]
    assert table_of([*recaption, "--output=a.jsonl", "--output", "b.jsonl"]) == Path("b.jsonl")
    assert table_of(recaption) == Path("captions.jsonl")
    assert table_of(["python", "-m", "sora_jax.sample", "--output=a.mp4"]) is None


def start(*arguments):
    command = [sys.executable, "-m", "sora_jax.supervise", *arguments]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_nothing_is_started_again(number):
    child = "import signal, sys, time\n"
    child += f"signal.signal({int(number)}, lambda *_: sys.exit(85))\nprint('here', flush=True)\ntime.sleep(60)"
    with start("--patience=2", sys.executable, "-c", child) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 85
    assert said == f"supervise: ended with code 85 after {number.name}: not started again\n"


def test_a_signal_ends_a_pause():
    with start(sys.executable, "-c", "import os; os._exit(75)") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "supervise: ended with code 75: restart 1 in 5 s\n"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (85, "supervise: stopped before the next start\n")
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is no command to run"),
        (["no/such/program"], "no/such/program cannot be started: No such file or directory"),
        (["--patience=-1", "true"], "flag --patience=-1"),
    ],
)
def test_a_mistake_ends_in_a_sentence(arguments, said):
    with start(*arguments) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors.startswith("UserError: ")
    assert said in errors
    assert errors.count("\n") == 1
