"""The halves of the autoencoder with shapes in place of clips: what plans compile, and what a run compiles ahead."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from sora_jax.core import sharding
from sora_jax.core.ahead import Ahead
from sora_jax.core.tree import abstract_model
from sora_jax.experiment.loading import build_autoencoder
from sora_jax.experiment.programs import Program
from sora_jax.experiment.schema import Settings
from sora_jax.generate.request import read_size
from sora_jax.models.codec import programs_of
from sora_jax.video import shapes


def codec_programs(settings: Settings, mesh: Mesh, *, size: str | None = None, clips: int = 1) -> list[Program]:
    """Returns encoding and decoding of one chunk of frames that carries on from those before it.

    Encoding takes so many `clips` at once, decoding one; frames have the `size`, by default
    that of the samples, or that of a tile where frames are cut into tiles. Raises UserError for a size off the strides.
    """
    whole = settings.sampling.size if size is None else read_size(size)
    shapes.clip_token_grid((1, *whole), stride=settings.stride, patch=(1, *settings.transformer.patch[1:]))
    tile, frames = settings.codec.tile, settings.codec.chunk_frames
    height, width = (side if tile is None else min(side, tile) for side in whole)
    place = sharding.replicated(mesh)
    found = []
    for name, chunks in (
        (f"encoding {clips} clips", encoder_chunks(settings, place, clips, (height, width))),
        ("decoding a clip", decoder_chunks(settings, place, 1, (height, width))),
    ):
        params, kept, later = chunks.later
        found.append(
            Program(
                name=f"{name}, {frames} frames of {height}x{width}",
                lower=chunks.lower_later,
                held={"parameters": params, "batch": [later, kept]},
                kept=None,
                flops=None,
                recomputed=0.0,
                facts={"clips": later.shape[0], "frames": frames, "height": height, "width": width},
            )
        )
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunks:
    """A half of the autoencoder, jitted, and the shapes of its arguments: (parameters, what was kept, chunk).

    Attributes:
      run: The program.
      first: Its arguments for the first chunk of a clip.
      later: For those that carry on from one before.
    """

    run: Any
    first: tuple[Any, Any, Any]
    later: tuple[Any, Any, Any]

    def lower_first(self) -> Any:
        """Returns the lowered program of the first chunk; called with the mesh set."""
        return self.run.lower(*self.first)

    def lower_later(self) -> Any:
        """Returns that of the chunks after it."""
        return self.run.lower(*self.later)


def encoder_chunks(settings: Settings, place: NamedSharding, clips: int, size: tuple[int, int]) -> Chunks:
    """Returns encoding of so many clips of a size, px, side by side."""
    shape = (clips, settings.codec.chunk_frames, *size, 3)
    return _chunks(settings, place, programs_of(settings.autoencoder).encode, shape, jnp.uint8)


def decoder_chunks(settings: Settings, place: NamedSharding, clips: int, size: tuple[int, int]) -> Chunks:
    """Returns decoding into so many clips of a size, px, side by side."""
    time, rows, columns = settings.stride
    frames = settings.codec.chunk_frames // time
    shape = (clips, frames, size[0] // rows, size[1] // columns, settings.autoencoder.channels)
    return _chunks(settings, place, programs_of(settings.autoencoder).decode, shape, jnp.float32)


def _chunks(settings: Settings, place: NamedSharding, run: Any, shape: tuple[int, ...], dtype: Any) -> Chunks:
    _, params, _ = abstract_model(functools.partial(build_autoencoder, settings))

    def at_place(one: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=place)

    shaped = jax.tree.map(at_place, dict(params))
    first, later = (jax.ShapeDtypeStruct((shape[0], n, *shape[2:]), dtype, sharding=place) for n in (1, shape[1]))
    _, kept = jax.eval_shape(run, shaped, None, first)
    return Chunks(run=run, first=(shaped, None, first), later=(shaped, jax.tree.map(at_place, kept), later))


def compile_halves_ahead(
    ahead: Ahead, half: Callable[..., Chunks], settings: Settings, mesh: Mesh, *, clips: int
) -> None:
    """Lets a half be compiled for so many clips of each size of the drawn world, as other sizes are not known yet."""
    if settings.data.source != "shapes" or settings.shapes.worlds is not None or settings.codec.tile is not None:
        return
    programs_of(settings.autoencoder)  # made here: two threads would each make their own
    place = sharding.replicated(mesh)
    for size in settings.shapes.sides:
        for later in (False, True):
            lower = functools.partial(_lower, half, settings, place, clips, size, later=later)
            ahead.add((half.__name__, later, clips, size), lower, mesh)


def _lower(half: Callable[..., Chunks], *arguments: Any, later: bool) -> Any:
    chunks = half(*arguments)
    return chunks.lower_later() if later else chunks.lower_first()
