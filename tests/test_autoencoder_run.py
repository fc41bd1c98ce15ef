"""A run of several autoencoder stages, as a user runs it: weights carry over, the judge joins, both are reported."""

import json
import shutil

import numpy as np
import pytest

from sora_jax.checkpoints.reading import load_tree
from sora_jax.experiment.loading import load_codec
from sora_jax.experiment.settings import read_settings
from sora_jax.train.workdir import Workdir

CONFIG = "tests/toy_autoencoder.py"


@pytest.fixture(scope="module")
def workdir(python, toy_workdir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "autoencoder"
    done = python("-m", "sora_jax.main", f"--config={CONFIG}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


def lines(workdir, stage):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def test_the_judge_joins_in_its_stage_alone(workdir):
    assert "judge" not in lines(workdir, "first")[0]
    for line in lines(workdir, "second"):
        assert np.isfinite([line[name] for name in ("judge", "judged_real", "judged_made", "psnr")]).all()


def test_the_second_stage_goes_on_from_the_first(workdir):
    first, second = lines(workdir, "first"), lines(workdir, "second")
    assert second[0]["psnr"] > first[0]["psnr"] + 1, "not from nothing"
    facts = Workdir(workdir).facts()["stages"]
    assert list(facts) == ["first", "second"]


def test_the_codec_is_that_of_the_last_stage_without_its_judge(workdir):
    opened = Workdir(workdir)
    settings = read_settings(opened.config())
    assert opened.read_json("latents.json")["stage"] == "second"
    codec = load_codec(opened, settings)
    assert not [name for name in codec.params if "discriminator" in name]
    name = "encoder.conv_in.kernel"
    found = load_tree(opened.checkpoints("second"), {"ema": {"width_0.1": {name: codec.params[name]}}})
    np.testing.assert_array_equal(found.state["ema"]["width_0.1"][name], codec.params[name])


def test_it_is_evaluated_and_shown(workdir):
    result = json.loads((workdir / "evaluation.json").read_text())
    assert result.keys() == {"autoencoder"}
    assert {"psnr", "psnr_resampled", "ssim", "held_out"} <= result["autoencoder"].keys()
    page = (workdir / "report.html").read_text()
    assert "first" in page
    assert "second" in page


@pytest.mark.slow
def test_a_judged_stage_that_was_stopped_ends_as_if_it_was_not(python, workdir, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    facts = json.loads((again / "run.json").read_text())
    del facts["stages"]["second"]
    facts["evaluated"] = False
    (again / "run.json").write_text(json.dumps(facts))
    shutil.rmtree(again / "checkpoints" / "second" / "6")
    done = python("-m", "sora_jax.main", f"--config={CONFIG}", f"--workdir={again}")
    assert done.returncode == 0, done.stderr
    assert "going on from step 3" in done.stderr
    ends = []
    for path in (workdir, again):
        opened = Workdir(path)
        ends.append(load_codec(opened, read_settings(opened.config())).fingerprint())
    assert ends[0] == ends[1]
