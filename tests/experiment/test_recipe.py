"""The step that is compiled ahead is the one that the loop calls; so are the halves of the autoencoder."""

import threading

import jax
import numpy as np
import pytest

from sora_jax.core import rng
from sora_jax.core.mesh import make_mesh
from sora_jax.core.tree import split_model
from sora_jax.experiment.kinds import KINDS
from sora_jax.experiment.loading import build_autoencoder
from sora_jax.experiment.settings import read_settings
from sora_jax.models.codec import Codec
from sora_jax.train.loop import to_device
from tests import toy


class AtOnce:
    """In the place of `Ahead`: compiles at once, in a thread."""

    def add(self, name, lower, mesh):
        def work():
            with jax.set_mesh(mesh):
                lower().compile()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()


class OnlyPrograms:
    """Of a run what compiling ahead looks at."""

    def __init__(self, settings):
        self.settings, self.mesh = settings, make_mesh(settings.mesh)
        self.recipes, self.ahead = {}, AtOnce()


@pytest.fixture(scope="module")
def run():
    config = toy.get_config()
    config.shapes.sides, config.run = ((16, 24),), ("autoencoder", "prepare", "images")
    made = OnlyPrograms(read_settings(config))
    for name in made.settings.run:
        KINDS[made.settings.stages[name].kind].compile_ahead(made, name)
    return made


@pytest.mark.parametrize("stage", ["autoencoder", "images"])
def test_the_loop_finds_the_step(run, compiled, stage):
    recipe, kind = run.recipes[stage], KINDS[run.settings.stages[stage].kind]
    batches = kind.batches(run.settings, stage, segment_tokens=4)
    with jax.set_mesh(run.mesh):
        state = recipe.maker.fresh(rng.key(0, "weights"))
        for batch in [*batches, *batches]:
            zeros = {name: np.zeros(one.shape, one.dtype) for name, one in batch.shapes.items()}
            state, _ = recipe.program(state, to_device(zeros, run.mesh), recipe.step.scalars)
    assert int(state.step) == 2 * len(batches)
    assert "jit(made)" in compiled  # the fresh state: so the names are those that jax gives
    assert "jit(step)" not in compiled


def test_the_codec_finds_its_halves(run, compiled):
    settings = run.settings
    _, params, _ = split_model(build_autoencoder(settings, rng.key(0, "weights")))
    channels = np.ones(settings.autoencoder.channels)
    codec = Codec(
        settings.autoencoder, params, mean_C=0 * channels, scale_C=channels, work=settings.codec, mesh=run.mesh
    )
    compiled.clear()
    for height, width in settings.shapes.sides:
        codec.reconstruct(np.zeros((1, 5, height, width, 3), np.uint8))
        codec.encode(np.zeros((settings.stages["prepare"].batch, 5, height, width, 3), np.uint8))
    assert "jit(run)" not in compiled
    codec.encode(np.zeros((3, 5, 16, 24, 3), np.uint8))
    assert "jit(run)" in compiled
