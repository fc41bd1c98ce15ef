"""The runs of a study: each has the config that its command says, is made once, and ends the study if it fails."""

import json
import os
import shlex
import signal
import sys
import threading
import time

import pytest
from absl import flags
from ml_collections import config_flags

from sora_jax.core.errors import Preempted, UserError
from sora_jax.experiment import children
from sora_jax.experiment.children import Child, ChildFailed, Study, run_children, shared_autoencoder, shared_child
from tests.conftest import TOY

GIVEN = {"shapes.sides": ((16, 16), (24, 16)), "optimizer.name": "adamw", "stages.videos.steps": 9, "shapes.seed": 3}
CHILD = Child(name="wide", changes={"transformer.width": 32, "transformer.heads": 4, "seed": 5})


@pytest.fixture
def study(tmp_path):
    return Study(folder=tmp_path / "study", file=TOY, given=GIVEN)


def finish(study, child, **changes):
    """Writes what a finished run leaves."""
    workdir = study.workdir(child)
    workdir.path.mkdir(parents=True)
    (workdir.path / "config.json").write_text(study.config(child).copy_and_resolve_references().to_json_best_effort())
    stages = {name: {} for name in study.settings(child).run}
    (workdir.path / "run.json").write_text(json.dumps({"stages": stages, "evaluated": True, **changes}))


def test_the_command_of_a_run_says_its_config(study):
    words = study.command(CHILD)
    assert words[:3] == ["python", "-m", "sora_jax.main"]
    assert f"--workdir={study.folder}/wide" in words
    read = flags.FlagValues()
    argv = [word for word in shlex.split(shlex.join(words)) if "workdir" not in word][2:]
    flag = config_flags.DEFINE_config_file("config", flag_values=read, sys_argv=argv)
    read(argv)
    assert flag.value.to_dict() == study.config(CHILD).to_dict()
    assert (flag.value.seed, flag.value.stages.images.optimizer.name, flag.value.shapes.seed) == (5, "adamw", 3)


def test_what_all_share_is_made_first_and_taken_by_the_others(study):
    first, taken = shared_child(study)
    assert study.command(first)[-1] == "--until=prepare"
    folder = str(study.folder / "shared")
    assert taken == {"autoencoder.start_from": folder, "stages.prepare.start_from": folder}
    settings = study.settings(Child(name="other", changes=taken))
    assert settings.run == ("prepare", "images", "videos"), "it trains no autoencoder of its own"
    bare = Study(folder=study.folder, file=TOY, given={"run": ("autoencoder",)})
    with pytest.raises(UserError, match="prepares no clips: a study needs videos"):
        shared_child(bare)


def test_of_an_autoencoder_alone_no_clips_are_prepared_and_nothing_is_made_where_it_is_given(study, tmp_path):
    (first,), taken = shared_autoencoder(study)
    assert study.command(first)[-1] == "--until=autoencoder"
    assert taken == {"autoencoder.start_from": str(study.folder / "shared")}
    given = {**GIVEN, "autoencoder.start_from": str(tmp_path / "other")}
    assert shared_autoencoder(Study(folder=study.folder, file=TOY, given=given)) == ([], {})


def test_a_run_is_done_when_it_is_judged_or_when_it_came_as_far_as_it_should(study):
    first, _ = shared_child(study)
    assert not study.is_done(CHILD)
    finish(study, CHILD)
    assert study.is_done(CHILD)
    other = Study(folder=study.folder, file=TOY, given={**GIVEN, "transformer.mlp_width": 24, "log.every_steps": 7})
    with pytest.raises(UserError, match=r"wide was made with another config \(transformer.mlp_width: 16 -> 24\)"):
        other.is_done(CHILD)
    finish(study, first, stages={"autoencoder": {}}, evaluated=False)
    assert not study.is_done(first)
    (study.folder / "shared" / "run.json").write_text('{"stages": {"autoencoder": {}, "prepare": {}}}')
    assert study.is_done(first)


def test_a_key_that_is_none_is_told(study):
    with pytest.raises(UserError, match=r"toy\.py has no such key or value"):
        study.config(Child(name="a", changes={"transformer.breadth": 3}))


@pytest.fixture
def made(study, monkeypatch):
    """Returns a function that makes runs which do what a program says instead: the names of those done, in order."""

    def make(programs):
        told, started = [], []

        def command(self, child):
            started.append(child.name)
            return ["python", "-c", programs[child.name]]

        monkeypatch.setattr(Study, "command", command)
        monkeypatch.setattr(Study, "is_done", lambda self, child: programs[child.name] is None)
        every = [Child(name=name, changes={}) for name in programs]
        try:
            run_children(study, every, done=lambda child, seconds: told.append((child.name, seconds is None)))
        finally:
            make.started, make.told = started, told
        return told

    return make


def test_runs_are_made_in_order_and_those_that_are_made_are_left(made, study):
    assert made({"a": "print('hello')", "b": None, "c": ""}) == [("a", False), ("b", True), ("c", False)]
    assert made.started == ["a", "c"]
    assert (study.folder / "a.log").read_text() == "hello\n"


@pytest.mark.parametrize(("program", "code"), [("exit(66)", 66), ("os.kill(os.getpid(), 9)", 75)])
def test_a_run_that_fails_ends_the_study_with_its_code_and_its_last_words(made, program, code):
    with pytest.raises(ChildFailed, match=r"the run a ended with code .*: DataError: it is torn") as failed:
        made({"a": f"import os; print('DataError: it is torn', flush=True); {program}", "b": ""})
    assert (failed.value.exit_code, made.started) == (code, ["a"])


def test_a_signal_is_passed_on_and_stops_the_study(made, study):
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(85)); "
        "print('ready', flush=True); time.sleep(60)"
    )

    def stop():
        log = study.folder / "a.log"
        while not (log.exists() and "ready" in log.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Preempted, match="stopped by SIGTERM during a: the same command goes on"):
        made({"a": program, "b": ""})
    thread.join()
    assert made.started == ["a"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_child_is_run_by_the_python_of_the_study(made, study):
    made({"a": "import sys; print(sys.executable)"})
    assert (study.folder / "a.log").read_text().strip() == sys.executable
    assert children.ChildFailed.__mro__[1].exit_code == 70
