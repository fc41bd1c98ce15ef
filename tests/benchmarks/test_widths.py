"""The benchmark of widths: slopes of what is known, and a whole pass over a toy run."""

import dataclasses

import numpy as np
import pytest

from sora_jax.benchmarks import widths
from sora_jax.core.errors import UserError
from sora_jax.experiment.settings import read_settings
from sora_jax.train.optimizer import ScheduleConfig
from sora_jax.train.workdir import Workdir


def test_the_slope_of_a_power_is_its_exponent():
    logarithms = [{"flat": np.log(3.0), "root": 0.5 * np.log(width) + 1} for width in (64, 128, 512)]
    slopes = widths.slopes_of((64, 128, 512), logarithms)
    assert slopes["flat"] == pytest.approx(0, abs=1e-12)
    assert slopes["root"] == pytest.approx(0.5)


def test_widths_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match="one --width=64 has no slope: give two or more"):
        widths.check_widths("sizes", [64, 64], head_width=16)
    with pytest.raises(UserError, match=r"a width of 8 is no multiple of --head_width=16: give one that is"):
        widths.check_widths("rates", [64, 8], head_width=16)
    widths.check_widths("rates", [64], head_width=16)


@pytest.fixture(scope="module")
def study(toy_workdir):
    workdir = Workdir(toy_workdir)
    settings = read_settings(workdir.config())
    batches = widths.read_batches(workdir, settings, 4)
    return widths.WidthStudy(
        settings=settings, base_width=16, head_width=8, depth=2, optimizer="adamw", batches=batches
    )


@pytest.mark.slow
def test_outputs_of_wide_transformers_grow_without_it_and_stay_with_it(study):
    constant = ScheduleConfig(learning_rate=2e-3, warmup_steps=0, decay_share=0.0, final_share=1.0)
    growth = {}
    for base in (16, None):
        sizes = []
        for width in (16, 128):
            trainer = widths.Trainer(dataclasses.replace(study, base_width=base), width)
            *_, (state, loss) = trainer.train(constant, steps=4)
            assert np.isfinite(loss)
            sizes.append(trainer.sizes(state))
        assert sizes[0].keys() == sizes[1].keys()
        assert {"transformer.proj_out 0", "transformer.blocks.mlp_in 1", "text.blocks.to_qkv 0"} <= sizes[0].keys()
        growth[base] = np.log(sizes[1]["transformer.proj_out 0"] / sizes[0]["transformer.proj_out 0"]) / np.log(8)
    assert growth[None] > 0.5
    assert abs(growth[16]) < 0.25


@pytest.mark.slow
def test_the_figures_name_the_best_rate(study):
    figures = {one.name: one.value for one in widths.rate_figures(study, (16, 32), (1e-5, 4e-3), steps=8)}
    assert figures["best_rates_apart"] == 0
    assert figures["best_rate_32"] == 4e-3
    assert figures["loss_32_0.004"] < figures["loss_32_1e-05"]
