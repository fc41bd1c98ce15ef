"""Steps that are run again: the same bits, and what is told where they are not, or where a run gave up."""

import json
import shutil

import pytest

from tests.conftest import TOY

BAD = ("--config.stages.images.schedule.learning_rate=1e30", "--config.guard.max_skipped_steps=2")


def replay(python, workdir, *flags):
    return python("-m", "sora_jax.replay", f"--workdir={workdir}", *flags)


@pytest.mark.parametrize("stage", [pytest.param("autoencoder", marks=pytest.mark.slow), "images"])
def test_a_step_that_is_run_again_gives_the_same_bits(python, toy_workdir, stage):
    done = replay(python, toy_workdir, f"--stage={stage}", "--checkpoint=3" if stage == "images" else "--checkpoint=6")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    compared = 2 if stage == "images" else 1
    assert sum(line.endswith(", as then") for line in lines) == compared
    assert lines[-1].endswith(f" steps, {compared} digests of the run compared: all the same")


def test_the_first_wrong_step_is_named(python, toy_workdir, tmp_path):
    shutil.copytree(toy_workdir, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["digest"] += (line["stage"], line["step"]) == ("images", 6)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = replay(python, tmp_path / "run", "--stage=images", "--checkpoint=3")
    assert done.returncode == 65
    assert "the weights after step 6 of images are not those that the run had; they were last the same at step 4" in (
        done.stderr
    )


def test_clips_that_are_gone_are_asked_for_by_a_stage_that_reads_them_alone(python, toy_workdir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(toy_workdir, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"] |= {"source": "folder", "path": str(tmp_path / "gone")}
    (workdir / "config.json").write_text(json.dumps(config))
    done = replay(python, workdir, "--stage=images", "--checkpoint=3", "--steps=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 steps, ")
    done = replay(python, workdir, "--stage=autoencoder", "--checkpoint=6")
    assert done.returncode == 2
    assert (
        "UserError: autoencoder trains on the clips themselves, not on what was prepared of them: put them back where "
        f"{workdir} read them (the folder {tmp_path / 'gone'} does not exist"
    ) in done.stderr


@pytest.mark.slow
def test_the_step_at_which_a_run_gave_up_is_run_again(python, toy_workdir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(toy_workdir, workdir)
    for stage in ("images", "videos"):
        shutil.rmtree(workdir / "checkpoints" / stage)
    facts = json.loads((workdir / "run.json").read_text())
    facts["stages"] = {name: facts["stages"][name] for name in ("autoencoder", "prepare")}
    (workdir / "run.json").write_text(json.dumps({**facts, "evaluated": False}))
    config = json.loads((workdir / "config.json").read_text())
    config["stages"]["images"]["schedule"]["learning_rate"] = 1e30
    config["guard"]["max_skipped_steps"] = 2
    (workdir / "config.json").write_text(json.dumps(config))
    done = python("-m", "sora_jax.main", f"--config={TOY}", f"--workdir={workdir}", *BAD)
    assert done.returncode == 65, done.stderr
    assert "NumericsError: images: 2 steps in a row, up to step " in done.stderr
    assert "changed nothing, its loss or gradient is not finite; its batch " in done.stderr
    found = replay(python, workdir, "--stage=images", "--failed")
    assert found.returncode == 0, found.stderr
    assert "of images: loss " in found.stdout
    assert ", gradient norm nan" in found.stdout
    assert "its batch is of shapes" in found.stdout
    assert "gradient " in found.stdout
    assert not any("batch tokens" in line for line in found.stdout.splitlines()), "the data were fine"


def test_mistakes_are_one_sentence(python, toy_workdir):
    done = replay(python, toy_workdir, "--stage=prepare")
    assert done.returncode == 2
    assert "UserError: 'prepare' is no stage that trains: --stage is one of autoencoder, images, videos" in done.stderr
    done = replay(python, toy_workdir, "--stage=images", "--failed")
    assert done.returncode == 2
    assert "there is no checkpoint in" in done.stderr
