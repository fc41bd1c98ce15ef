"""One line for the whole of a run: where it is, what is left, and that this is judged by what is measured."""

import io
import re

import pytest

from sora_jax.train.progress import Display, Part, Progress, RunProgress, about, in_sentence
from tests.fake_time import FakeTime


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def time():
    return FakeTime()


def part(name="videos", **changed) -> Part:
    return Part(**({"name": name, "total": 100, "unit": "steps", "each": 1.0, "once": 20.0} | changed))


def run_progress(time, *parts, stream=None) -> RunProgress:
    display = Display(stream=io.StringIO() if stream is None else stream, now=time)
    return RunProgress(parts, display=display, now=time)


def work(progress, time, dones, seconds, facts=""):
    for done in dones:
        time.passes(seconds)
        progress.update(done, facts)


def test_before_anything_is_measured_the_expectation_is_what_is_left(time):
    progress = run_progress(time, part("images"), part("videos", total=50, once=5.0))
    assert progress.left() == 120 + 55
    progress.begin("images")
    assert progress.left() == 120 + 55
    assert progress.share() == 0.0


def test_the_pace_of_the_part_in_progress_takes_the_place_of_what_was_expected(time):
    progress = run_progress(time, part(each=1.0, once=0.0))
    progress.begin("videos")
    work(progress, time, range(1, 51), 3.0)
    assert progress.left() == pytest.approx(50 * 3.0, rel=0.05)
    assert progress.share() == pytest.approx(0.5, abs=0.02)


def test_steps_that_compile_or_save_do_not_make_a_pace(time):
    progress = run_progress(time, part(each=1.0, once=60.0))
    progress.begin("videos")
    for done in range(1, 41):
        time.passes(30.0 if done in (1, 2, 20) else 1.0)
        progress.update(done)
    assert progress.left() == pytest.approx(60.0, rel=0.02)


def test_later_parts_are_expected_to_be_as_much_slower_as_the_first_one_was(time):
    progress = run_progress(time, part("images", total=1000, once=0.0), part("videos", total=1000, once=0.0))
    progress.begin("images")
    work(progress, time, range(1, 1001), 2.0)
    progress.end()
    assert progress.left() == pytest.approx(2000.0, rel=0.01)
    assert progress.share() == pytest.approx(0.5, abs=0.01)


def test_programs_that_lay_compiled_make_later_parts_quick_to_begin_and_no_step_faster(time):
    parts = [part(name, total=10, each=10.0, once=1000.0) for name in ("images", "videos")]
    progress = run_progress(time, *parts)
    progress.begin("images")
    work(progress, time, range(1, 11), 10.0)
    progress.end()
    assert progress.left() == pytest.approx(100.0, abs=10.0)


def test_the_share_never_falls_and_ends_at_one(time):
    progress = run_progress(time, part("images"), part("videos"))
    shares = [progress.share()]
    for name in ("images", "videos"):
        progress.begin(name)
        for done in range(1, 101):
            time.passes(0.1 if done < 50 else 9.0)
            progress.update(done)
            shares.append(progress.share())
        progress.end()
    assert shares == sorted(shares)
    assert (progress.share(), progress.left()) == (1.0, 0.0)


def test_a_run_that_goes_on_counts_what_was_done_and_expects_only_the_rest(time):
    parts = [part("images", took=300.0), part("videos", done=60, once=0.0), part("evaluation", total=3, once=0.0)]
    progress = run_progress(time, *parts)
    assert progress.left() == 40 + 3
    progress.begin("videos")
    progress.go_on_from(60)
    assert progress.share() == pytest.approx(360 / 403)
    work(progress, time, range(61, 81), 1.0)
    assert progress.left() == pytest.approx(20 + 3)


def test_steps_done_again_are_left_again(time):
    progress = run_progress(time, part(once=0.0))
    progress.begin("videos")
    work(progress, time, range(1, 51), 1.0)
    progress.go_on_from(20)
    assert progress.left() == pytest.approx(80.0, rel=0.05)
    work(progress, time, range(21, 101), 1.0)
    assert progress.left() == 0.0


def test_in_a_log_the_line_comes_with_each_stage_and_every_half_minute(time, caplog, capsys):
    caplog.set_level("INFO", logger="absl")
    stream = io.StringIO()
    with run_progress(time, part("images", once=0.0), part("videos", total=40, once=0.0), stream=stream) as progress:
        for name, steps in (("images", 100), ("videos", 40)):
            progress.begin(name)
            work(progress, time, range(1, steps + 1), 1.0, "loss 0.5")
            progress.end()
    assert stream.getvalue() == ""
    assert capsys.readouterr().out.splitlines() == [
        "stage 1 of 2: images, 0% of the run",
        "stage 1 of 2: images took 2 min, 71% of the run, about 40 s left",
        "stage 2 of 2: videos, 71% of the run",
        "stage 2 of 2: videos took 40 s, 100% of the run is done",
    ]
    assert caplog.messages == [
        "stage 1 of 2: images 30/100 steps, 21% of the run, about 2 min left, loss 0.5",
        "stage 1 of 2: images 60/100 steps, 42% of the run, about 80 s left, loss 0.5",
        "stage 1 of 2: images 90/100 steps, 64% of the run, about 50 s left, loss 0.5",
        "stage 2 of 2: videos 30/40 steps, 92% of the run, about 10 s left, loss 0.5",
    ]


def test_what_is_left_is_not_told_before_units_were_measured(time, caplog):
    caplog.set_level("INFO", logger="absl")
    progress = run_progress(time, part("images", each=130.0), part("videos"), stream=io.StringIO())
    progress.begin("images")
    work(progress, time, range(1, 7), 31.0)
    told = ["left" in message for message in caplog.messages]
    assert told == [False] * 3 + [True] * 3, "the first compiles, three say how long it takes"


def test_a_stage_says_that_it_compiles_first_and_how_long_judged_by_those_before(time, capsys):
    parts = [part(name, once=50.0, compiling=40.0) for name in ("images", "videos")]
    progress = run_progress(time, *parts, part("evaluation", once=0.0))
    progress.begin("images")
    time.passes(150.0)  # three times as long as expected
    work(progress, time, range(1, 101), 1.0)
    progress.end()
    for name in ("videos", "evaluation"):
        progress.begin(name)
        work(progress, time, range(1, 101), 1.0)
        progress.end()
    first, _, second, _, third, _ = capsys.readouterr().out.splitlines()
    assert first == "stage 1 of 3: images, 0% of the run; first its programs are compiled, about 40 s"
    assert re.fullmatch(r"stage 2 of 3: videos, \d+% of the run; first its programs are compiled, about 2 min", second)
    assert re.fullmatch(r"stage 3 of 3: evaluation, \d+% of the run", third)


def test_on_a_terminal_a_bar_lives_for_the_whole_run(time, caplog):
    caplog.set_level("INFO", logger="absl")
    stream = Terminal()
    with run_progress(time, part("images"), part("videos"), stream=stream) as progress:
        progress.begin("images")
        work(progress, time, range(1, 101), 1.0, "loss 0.5")
        progress.end()
        progress.begin("videos")
    last = stream.getvalue().split("\r")[-1]
    assert "stage 2 of 2: videos" in last
    assert "|" in last
    assert caplog.messages == []


def test_what_is_printed_while_a_bar_lives_appears_above_it_and_the_streams_are_given_back(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("sys.stdout", stream)
    display = Display()
    display.show(0.5, "half")
    print("a line that stays")
    display.close()
    print("after")
    lines = stream.getvalue().replace("\r", "\n").splitlines()
    assert "a line that stays" in lines
    assert lines[-1] == "after"


def test_processes_that_do_not_speak_show_nothing(time, caplog, capsys):
    caplog.set_level("INFO", logger="absl")
    with RunProgress([part()], now=time) as progress:
        progress.begin("videos")
        work(progress, time, range(1, 101), 60.0)
        progress.end()
    assert (caplog.messages, capsys.readouterr().out) == ([], "")


def test_work_that_is_no_run_has_a_line_of_its_own(time, caplog):
    caplog.set_level("INFO", logger="absl")
    progress = Progress("verify", total=100, unit="records", display=Display(stream=io.StringIO(), now=time))
    for done in range(1, 101):
        progress.update(done)
        time.passes(1.0)
    progress.close()
    assert caplog.messages == [f"verify {done}/100 records" for done in (1, 31, 61, 91, 100)]


def test_the_estimate_is_a_sentence_by_stage_of_what_is_not_done():
    parts = [part("images", total=600), part("videos", total=2600, done=0), part("evaluation", total=3)]
    assert in_sentence(parts) == (
        "the run takes about 54 min on this machine: images 10 min, videos 44 min, evaluation 20 s"
    )
    rest = [part("images", took=500.0), part("videos", total=2600, done=1300)]
    assert in_sentence(rest) == "what is left takes about 22 min on this machine: videos 22 min"
    assert in_sentence([part(took=1.0)]) == "nothing is left to do but what is new"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "10 s"),
        (44, "40 s"),
        (89, "90 s"),
        (95, "2 min"),
        (3540, "59 min"),
        (7900, "2 h 10 min"),
        (2e5, "2 d 7 h"),
        (2e6, "23 days"),
    ],
)
def test_durations_are_as_rough_as_they_are_known(seconds, words):
    assert about(seconds) == words


def test_first_steps_that_compile_for_other_sizes_are_not_taken_for_the_pace(time):
    progress = run_progress(time, part(once=0.0))
    progress.begin("videos")
    work(progress, time, [1, 2, 3], 60.0)
    assert progress.left() == pytest.approx(97, rel=0.1)
    work(progress, time, range(4, 8), 3.0)  # slower than expected, and so every time
    assert progress.left() > 1.5 * 93


def test_a_pace_far_from_what_was_expected_is_believed_once_it_lasts(time):
    progress = run_progress(time, part(once=0.0, each=0.01))
    progress.begin("videos")
    work(progress, time, range(1, 10), 1.0)
    assert progress.left() == pytest.approx(91, rel=0.2)
