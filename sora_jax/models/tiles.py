"""Cuts frames that are too large for one piece into tiles that see all that they would see in the whole.

A tile is computed with a halo as wide as the convolutions reach, and the halo of the result is thrown away, so what is
kept are the numbers of the whole frame: there is no seam to blend. Lengths are in positions of the latent.

Shapes: B clips, T frames, H rows, W columns, C channels.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sora_jax.core.distributed import to_host
from sora_jax.models.autoencoder import AutoencoderConfig

# (what the chunk before left for this tile or None, tile) -> (result, what this one leaves)
TileProgram = Callable[[Any, Any], tuple[Any, Any]]
Corner = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Tile:
    """Along one side of a frame: positions [start, stop) are computed, [first, last) of the frame are kept."""

    start: int
    stop: int
    first: int
    last: int


def windows(length: int, *, tile: int, halo: int) -> list[Tile]:
    """Returns windows of one size that keep each of `length` positions once, up to `tile` of them each.

    At the edge of the frame a window has no halo: there the convolutions see zeros, as they do in the whole.
    """
    size = min(length, tile + 2 * halo)
    result, first = [], 0
    while first < length:
        start = max(0, min(first - halo, length - size))
        last = length if start + size == length else start + size - halo
        result.append(Tile(start=start, stop=start + size, first=first, last=last))
        first = last
    return result


def run_tiled(
    program: TileProgram,
    kept: Mapping[Corner, Any] | None,
    x_BTHWC: np.ndarray,
    *,
    tile: int,
    halo: int,
    scale_in: int,
    scale_out: int,
) -> tuple[np.ndarray, dict[Corner, Any]]:
    """Returns (the result on the host, what each tile leaves) of a program over a chunk of large frames.

    Args:
      program: What is computed of a tile.
      kept: What the tiles left of the chunk before; None for the first chunk.
      x_BTHWC: The chunk, `scale_in` rows and columns to a position.
      tile: Positions of a side that a tile keeps.
      halo: Positions around them that the result depends on.
      scale_in: Of the input.
      scale_out: Rows and columns of the result to a position.
    """
    height, width = (side // scale_in for side in x_BTHWC.shape[2:4])
    after: dict[Corner, Any] = {}
    lines = []
    for row in windows(height, tile=tile, halo=halo):
        line = []
        for column in windows(width, tile=tile, halo=halo):
            corner = row.start, column.start
            part = x_BTHWC[:, :, _cut(row.start, row.stop, scale_in), _cut(column.start, column.stop, scale_in)]
            result, after[corner] = program(None if kept is None else kept[corner], part)
            rows = _cut(row.first - row.start, row.last - row.start, scale_out)
            columns = _cut(column.first - column.start, column.last - column.start, scale_out)
            line.append(to_host(result[:, :, rows, columns]))
        lines.append(np.concatenate(line, axis=3))
    return np.concatenate(lines, axis=2), after


def _cut(start: int, stop: int, scale: int) -> slice:
    return slice(start * scale, stop * scale)


def encoder_halo(config: AutoencoderConfig) -> int:
    """Returns how many positions around it a position of `Encoder.down` depends on, at most."""
    reach = scale = config.patch  # px
    for space in (*config.space_down, False):
        # Two convolutions a block; the one that halves looks two positions to the right.
        reach += scale * (2 * config.blocks + (2 if space else 0))
        scale *= 2 if space else 1
    return math.ceil(reach / config.space_stride)


def decoder_halo(config: AutoencoderConfig) -> int:
    """Returns how many positions around it the pixels of a position depend on in `Decoder.up`, at most."""
    reach, scale = config.patch, config.space_stride  # px
    for space in (*config.space_down[::-1], False):
        # Two convolutions a block; the one after doubling, at the finer scale, and rounding to whole positions.
        reach += scale * (2 * config.decoder_blocks + (1 if space else 0))
        scale //= 2 if space else 1
    return math.ceil(reach / config.space_stride)
