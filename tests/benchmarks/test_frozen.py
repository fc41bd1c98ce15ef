"""The benchmark of frozen parameters gives the memory that freezing promises, and the time of a step."""

import dataclasses
import json

import pytest

from sora_jax.benchmarks import frozen
from sora_jax.experiment.kinds.diffusion import DiffusionKind
from sora_jax.experiment.settings import read_settings
from tests import toy


def test_the_state_takes_the_memory_that_is_promised():
    settings = read_settings(toy.get_config())
    stage = DiffusionKind().of(settings, "videos")
    stage = dataclasses.replace(stage, optimizer=dataclasses.replace(stage.optimizer, name="adamw"))
    settings = dataclasses.replace(settings, stages={**settings.stages, "videos": stage})
    changes = {"trainable": r".*attn2.*", "frozen_dtype": "bfloat16"}
    recipes = frozen.recipes_of(settings, "videos", changes)
    figures = {one.name: one.value for one in frozen.state_figures(recipes)}
    share = figures["trained_share"]
    assert 0 < share < 0.5
    # Of a trained parameter there are its value, two moments and the averages, float32; of a frozen one 2 bytes.
    numbers = 3 + len(settings.ema.widths)
    assert figures["state_ratio"] == pytest.approx(share + (1 - share) * 2 / (4 * numbers), rel=0.01)
    assert figures["checkpoint_ratio"] == pytest.approx(share, rel=0.01)


@pytest.mark.slow
def test_it_runs_as_a_user_runs_it(python, tmp_path):
    path = tmp_path / "frozen.json"
    flags = ("--config=tests/toy.py", "--clips=32", "--rounds=1", f"--json={path}")
    done = python("-m", "sora_jax.benchmarks.frozen", *flags)
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert written["memory_ratio"] < 1
    assert written["step_frozen"] / written["step_full"] == pytest.approx(written["step_ratio"])
