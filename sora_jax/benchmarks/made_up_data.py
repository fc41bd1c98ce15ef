"""Prepared clips of noise, and how long a config's step takes on rows of them."""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sora_jax.core import rng
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.tree import abstract_model
from sora_jax.data.shards.prepared import Prepared, PreparedSet, ShardWriter
from sora_jax.data.sources.shapes_world import ShapesWorld, describe
from sora_jax.experiment.datasets import PackedBatches
from sora_jax.experiment.kinds.diffusion import DiffusionKind
from sora_jax.experiment.kinds.recipe import Recipe
from sora_jax.experiment.recipes import recipe_of
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.train.loop import to_device
from sora_jax.train.state import TrainState
from sora_jax.train.step import make_step
from sora_jax.video import shapes


def last_stage(settings: Settings) -> str:
    """Returns the last diffusion stage of the run; UserError where there is none."""
    found = settings.stages_of(TEXT_TO_VIDEO)
    if not found:
        raise UserError("the config has no diffusion stage: give one that trains a transformer")
    return found[-1]


def prepare_noise(settings: Settings, folder: Path, *, count: int) -> PreparedSet:
    """Returns a prepared set with the sizes and captions of the drawn world, and noise for latents."""
    world = ShapesWorld(settings.shapes.world(seed=0, split="train", num_clips=count))
    channels, tokenizer = settings.autoencoder.channels, settings.text_encoder.tokenizer
    header = {
        "autoencoder": "noise",
        **tokenizer.recipe,
        "latent_mean": [0.0] * channels,
        "latent_scale": [1.0] * channels,
        "strides": list(settings.stride[:2]),
        "channels": channels,
    }
    generator = np.random.default_rng(0)
    with ShardWriter(folder, header=header, tokenizer=tokenizer) as writer:
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
    config = DiffusionKind().of(settings, stage)
    with tempfile.TemporaryDirectory() as folder:
        noise = prepare_noise(settings, Path(folder) / "noise", count=clips)
        stream = PackedBatches(noise, settings, mix=config.mix, token_drop=config.token_drop)
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


def seconds_of_step(settings: Settings, packs: list[dict[str, np.ndarray]]) -> float:
    """Returns the seconds of one step of `last_stage`, the median over the packs but the first few."""
    recipe = recipe_of(settings, last_stage(settings), make_mesh(settings.mesh))
    maker, config = recipe.maker, dataclasses.replace(recipe.step, steps=len(packs), accumulate=1)
    structure, _, axes = abstract_model(maker.build)
    step = make_step(recipe.objective, structure, maker.optimizer(axes), config)
    seconds = []
    with jax.set_mesh(maker.mesh):
        state = maker.fresh(rng.key(0, "benchmark"))
        for pack in packs:
            began = time.perf_counter()
            state, metrics = step(state, to_device(pack, maker.mesh), config.scalars)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[3:]))
