"""The command that studies scale: what it prints for a cluster, and runs that it makes itself."""

import json
import shlex

import pytest

from sora_jax.experiment.children import Study, run_children
from sora_jax.experiment.scaling import ladder
from tests.conftest import TOY

LADDER = {
    "scaling.widths": (8, 16),
    "scaling.depths": (1, 1),
    "scaling.compute": (2.0, 4.0, 8.0),
    "scaling.seeds": (0, 1),
    "shapes.seed": 0,
}
KEYS = [f"--config.{key}={value}" for key, value in LADDER.items()]


def test_commands_for_a_cluster_are_those_of_the_ladder(python, tmp_path):
    done = python("-m", "sora_jax.scaling", f"--config={TOY}", f"--workdir={tmp_path}", "--do=print", *KEYS)
    assert done.returncode == 0, done.stderr
    study = Study(folder=tmp_path, file=TOY, given=LADDER)
    first, rungs = ladder(study)
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert commands == [study.command(child) for child in (first, *(rung.child for rung in rungs))]
    assert len(commands) == 1 + 2 * 3 * 2


def test_a_report_of_nothing_is_refused(python, tmp_path):
    done = python("-m", "sora_jax.scaling", f"--config={TOY}", f"--workdir={tmp_path}", "--do=report", *KEYS)
    assert done.returncode == 2
    assert "has no finished run: leave out --do=report to make them" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_runs_share_what_the_first_one_made(toy_workdir, tmp_path):
    start = {"autoencoder.start_from": str(toy_workdir), "stages.prepare.start_from": str(toy_workdir)}
    brief = {"evaluation.prompts": 0, "evaluation.clips": 1, "log.samples_per_stage": 1}
    study = Study(folder=tmp_path / "study", file=TOY, given={**LADDER, **start, **brief})
    first, rungs = ladder(study)
    children, made = [first, rungs[0].child, rungs[1].child], []
    run_children(study, children, done=lambda child, seconds: made.append((child.name, seconds is not None)))
    assert made == [("shared", True), ("w8-c2-s0", True), ("w8-c2-s1", True)]
    weights = []
    for rung in rungs[:2]:
        workdir = study.workdir(rung.child)
        facts, config = workdir.facts(), workdir.config()
        assert facts["evaluated"]
        assert (facts["stages"]["prepare"]["already_done"], facts["stages"]["prepare"]["written"]) == (96, 0)
        assert facts["stages"]["videos"]["steps"] == rung.steps["videos"]
        assert (config["transformer"]["width"], config["seed"]) == (8, rung.seed)
        assert list(workdir.samples("videos", rung.steps["videos"]).glob("*.gif")), "the figure's pictures"
        weights.append(json.loads((workdir.path / "latents.json").read_text())["mean"])
    assert weights[0] == weights[1], "one autoencoder"
    run_children(study, children, done=lambda child, seconds: made.append((child.name, seconds is not None)))
    assert made[3:] == [("shared", False), ("w8-c2-s0", False), ("w8-c2-s1", False)]
