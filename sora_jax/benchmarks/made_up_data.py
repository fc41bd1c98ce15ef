"""Prepared clips of noise, and how long a config's step takes on rows of them."""

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sora_jax.core import rng
from sora_jax.core.mesh import make_mesh
from sora_jax.core.precision import compute_dtype
from sora_jax.core.tree import abstract_model
from sora_jax.data.shards.prepared import Prepared, PreparedSet, ShardWriter
from sora_jax.data.sources.shapes_world import ShapesWorld, describe
from sora_jax.data.tokens import TOKENIZER
from sora_jax.experiment.datasets import PackedBatches
from sora_jax.experiment.loading import build_generator
from sora_jax.experiment.recipes import Recipe
from sora_jax.experiment.settings import Settings
from sora_jax.experiment.stage_settings import DiffusionStage
from sora_jax.objectives.diffusion import make_objective
from sora_jax.train.loop import to_device
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import StateMaker, TrainState
from sora_jax.train.step import StepConfig, make_step
from sora_jax.video import shapes


def prepare_noise(settings: Settings, folder: Path, *, count: int) -> PreparedSet:
    """Returns a prepared set with the sizes and captions of the drawn world, and noise for latents."""
    world = ShapesWorld(settings.shapes.world(seed=0, split="train", num_clips=count))
    channels = settings.autoencoder.channels
    header = {
        "autoencoder": "noise",
        "text_encoder": TOKENIZER,
        "latent_mean": [0.0] * channels,
        "latent_scale": [1.0] * channels,
        "strides": list(settings.stride[:2]),
        "channels": channels,
    }
    generator = np.random.default_rng(0)
    with ShardWriter(folder, header=header) as writer:
        for index in range(count):
            scene = world.scene(index)
            size = (scene.frames, scene.height, scene.width)
            grid = shapes.latent_grid(size, settings.stride)
            writer.add(
                Prepared(
                    latent_THWC=generator.standard_normal((*grid, channels), np.float32),
                    fps=scene.fps,
                    captions=describe(scene),
                    source_id=world.source_id(index),
                    pixel_shape=size,
                    trimmed_frames=0,
                )
            )
    return PreparedSet(folder)


def noise_pack(settings: Settings, stage: str, *, clips: int) -> tuple[dict[str, np.ndarray], float]:
    """Returns a batch of a diffusion stage, drawn from so many clips of noise, and the model FLOPs of its step."""
    config = settings.stages[stage]
    assert isinstance(config, DiffusionStage), stage
    with tempfile.TemporaryDirectory() as folder:
        stream = PackedBatches(prepare_noise(settings, Path(folder) / "noise", count=clips), config, settings)
        pack = next(stream.batches(0))
    return pack, stream.flops(pack)


class Steps:
    """One step after the other, as each takes the state of the one before."""

    def __init__(self, step: Callable[..., tuple[TrainState, Any]], recipe: Recipe, pack: dict[str, jax.Array]):
        self._state = recipe.maker.fresh(rng.key(0, "steps"))
        self._step = functools.partial(step, batch=pack, scalars=recipe.step.scalars)

    def __call__(self) -> TrainState:
        self._state, _ = self._step(self._state)
        return self._state


def time_step(settings: Settings, packs: list[dict[str, np.ndarray]]) -> float:
    """Returns the seconds of one step of the last stage, the median over the packs but the first few."""
    stage = settings.stages[settings.run[-1]]
    assert isinstance(stage, DiffusionStage), stage
    mesh = make_mesh(settings.mesh)
    build = functools.partial(build_generator, settings)
    make = functools.partial(make_optimizer, settings.optimizer)
    maker = StateMaker(build=build, make_optimizer=make, ema=settings.ema, mesh=mesh)
    structure, _, axes = abstract_model(build)
    config = StepConfig(
        name="benchmark",
        seed=0,
        steps=len(packs),
        accumulate=1,
        schedule=stage.schedule,
        ema=settings.ema,
        guard=settings.guard,
    )
    objective = make_objective(settings.diffusion, stage.known, dtype=compute_dtype(settings.precision))
    step = make_step(objective, structure, make(axes), config)
    seconds = []
    with jax.set_mesh(mesh):
        state = maker.fresh(rng.key(0, "benchmark"))
        for pack in packs:
            began = time.perf_counter()
            state, metrics = step(state, to_device(pack, mesh), config.scalars)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[3:]))
