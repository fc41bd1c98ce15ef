"""Refining as a user asks a run for it: videos in passes, interpolation, and what evaluation says of them."""

import json
import shutil

import numpy as np
import pytest

import sora_jax
from sora_jax.core.errors import UserError


@pytest.mark.slow
def test_a_run_makes_videos_in_passes_and_is_judged_on_it(toy_workdir, tmp_path):
    run = sora_jax.open_run(shutil.copytree(toy_workdir, tmp_path / "run"))
    at_once, refined = (
        run.sample("a red circle", size=(16, 16), frames=5, refine=refine)[0] for refine in ("none", "space:2,time:4")
    )
    assert refined.shape == at_once.shape == (5, 16, 16, 3)
    assert (refined != at_once).any()
    (faster,) = run.sample("a red circle", task="interpolate", video=at_once, fps=16.0)
    assert faster.shape == at_once.shape, "what is given as an array is at the rate that is asked for"
    (faster,) = run.sample("a red circle", task="interpolate", video=at_once, frames=9)
    assert faster.shape == (9, 16, 16, 3)
    scores = run.evaluate("refine", clips=2)["refine"]
    assert scores == json.loads((tmp_path / "run" / "evaluation.json").read_text())["refine"]
    assert {"psnr_gain_lanczos", "shape_gain", "time_px"} <= scores.keys()
    assert np.isfinite([scores[name] for name in ("psnr", "psnr_lanczos", "psnr_autoencoder", "time_px")]).all()
    assert (scores["clips"], scores["time"]) == (2, 4)
    sheets = {path.name.partition(".")[0] for path in (tmp_path / "run" / "samples" / "evaluation").iterdir()}
    assert {"refine_larger", "refine_faster", "refine_cascade"} <= sheets


def test_a_size_on_the_way_must_be_on_the_strides(toy_workdir):
    with pytest.raises(
        UserError, match=r"16x24 px are refined from 4x6 px: .*ask for another size, or for refine=none"
    ):
        sora_jax.open_run(toy_workdir).sample("a red circle", size=(16, 24), refine="space:4")
