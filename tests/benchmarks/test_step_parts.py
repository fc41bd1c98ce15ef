"""The benchmark of a step's parts measures each of them, on the stage that is asked for."""

import dataclasses
import json

import pytest

from sora_jax.benchmarks import step_parts
from sora_jax.core.errors import UserError
from sora_jax.experiment.settings import read_settings
from tests import toy


@pytest.mark.slow
def test_it_runs_as_a_user_runs_it(python, tmp_path):
    path = tmp_path / "parts.json"
    done = python(
        "-m",
        "sora_jax.benchmarks.step_parts",
        "--config=tests/toy.py",
        "--clips=32",
        "--rounds=1",
        f"--json={path}",
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert min(written.values()) > 0
    assert written["step_over_product"] == pytest.approx(written["step_gflops"] / written["product_gflops"])
    assert all(f"\n{name} " in f"\n{done.stdout}" for name in written)


def test_the_last_diffusion_stage_is_taken_and_no_other_kind():
    settings = read_settings(toy.get_config())
    assert step_parts.stage_of(settings, None) == settings.run[-1]
    with pytest.raises(UserError, match="--stage=autoencoder is none of the diffusion stages of the config: "):
        step_parts.stage_of(settings, "autoencoder")
    settings = dataclasses.replace(settings, run=("autoencoder",))
    with pytest.raises(UserError, match=r"^the config has no diffusion stage: give one that trains a transformer$"):
        step_parts.stage_of(settings, None)
