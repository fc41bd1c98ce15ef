"""Canvases cut into tiles that overlap, and their latents put together again.

All tiles of a canvas have the noise of the whole, each the part where it lies, and what stands beside it is cut out of
the latent of the whole, so that only what a model sees farther away differs. What two tiles have both made is blended.

Letters: t h w token grid, T H W C latent.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.generate.canvas import Canvas, ContextPart, Within
from sora_jax.models.tiles import Tile, windows
from sora_jax.video import shapes

# Of a tile's side that it shares with each neighbour, about.
_SHARED = 1 / 4


class TilePlace(NamedTuple):
    """Where a tile lies in the latent of the whole: rows and columns, and how many of them neighbours have made too."""

    rows: slice
    columns: slice
    shared: tuple[int, int]


class TiledCanvas(NamedTuple):
    """A tile as a canvas of its own."""

    at: TilePlace
    canvas: Canvas


def tiles_of(canvas: Canvas, tile: tuple[int, int], *, patch: shapes.Size, unit: int) -> list[TiledCanvas] | None:
    """Returns tiles of up to `tile` tokens of height and width; None where the canvas is no larger than one.

    `unit` tokens of the canvas are one of the smallest clip beside it: tiles begin at multiples of it. Raises UserError
    where a tile has no room for what it shares with its neighbours.
    """
    sides = [_along(side, most, unit=unit) for side, most in zip(canvas.grid[1:], tile, strict=True)]
    if all(len(parts) == 1 for parts, _ in sides):
        return None
    (rows, more_rows), (columns, more_columns) = sides
    return [
        _cut(canvas, row, column, patch=patch, shared=(more_rows * patch[1], more_columns * patch[2]))
        for row in rows
        for column in columns
    ]


def _along(side: int, most: int, *, unit: int) -> tuple[list[Tile], int]:
    """Returns the tiles along one side in tokens, and how many tokens two neighbours share."""
    if side <= most:
        return [Tile(start=0, stop=side, first=0, last=side)], 0
    units = most // unit
    halo = max(1, round(units * _SHARED / 2))
    if units <= 2 * halo:
        raise UserError(
            f"tiles of {most} tokens of height or width are too small to overlap: at least {3 * unit} are needed"
        )
    found = windows(-(-side // unit), tile=units - 2 * halo, halo=halo)
    return [
        Tile(
            start=one.start * unit,
            stop=min(side, one.stop * unit),
            first=one.first * unit,
            last=min(side, one.last * unit),
        )
        for one in found
    ], 2 * halo * unit


def _cut(canvas: Canvas, row: Tile, column: Tile, *, patch: shapes.Size, shared: tuple[int, int]) -> TiledCanvas:
    """Returns one tile of a canvas."""
    place = TilePlace(
        rows=slice(row.start * patch[1], row.stop * patch[1]),
        columns=slice(column.start * patch[2], column.stop * patch[2]),
        shared=shared,
    )
    here = np.s_[:, row.start : row.stop, column.start : column.stop]
    assert canvas.latent_THWC is not None
    assert canvas.known_thw is not None
    return TiledCanvas(
        at=place,
        canvas=dataclasses.replace(
            canvas,
            grid=(canvas.grid[0], row.stop - row.start, column.stop - column.start),
            latent_THWC=canvas.latent_THWC[:, place.rows, place.columns],
            known_thw=canvas.known_thw[here],
            context=tuple(_beside(part, row, column, patch=patch) for part in canvas.context),
            within=Within(grid=canvas.grid, row=row.start, column=column.start),
        ),
    )


def _beside(part: ContextPart, row: Tile, column: Tile, *, patch: shapes.Size) -> ContextPart:
    """Returns what of a clip beside the whole stands beside a tile."""
    scale = part.clip.scale
    rows, columns = (
        slice(side.start // scale * size, -(-side.stop // scale) * size)
        for side, size in zip((row, column), patch[1:], strict=True)
    )
    clip = dataclasses.replace(part.clip, latent_THWC=part.clip.latent_THWC[:, rows, columns])
    whole = shapes.token_grid(part.clip.latent_THWC.shape[:3], patch)
    return ContextPart(
        clip=clip, level=part.level, within=Within(grid=whole, row=row.start // scale, column=column.start // scale)
    )


def blended(shape: tuple[int, ...], made: Sequence[tuple[TilePlace, np.ndarray]]) -> np.ndarray:
    """Returns the latent of `shape`, float32, of which tiles are parts: where several are, their mean.

    Weights of the mean fall along what two neighbours share, from 1 to 0 at the end of a tile.
    """
    total_THWC, weight_HW = np.zeros(shape, np.float64), np.zeros(shape[1:3])
    for at, latent_THWC in made:
        rows, columns = (
            _ramp(side, whole, shared)
            for side, whole, shared in zip((at.rows, at.columns), shape[1:3], at.shared, strict=True)
        )
        weight = rows[:, None] * columns[None]
        total_THWC[:, at.rows, at.columns] += weight[..., None] * latent_THWC
        weight_HW[at.rows, at.columns] += weight
    return (total_THWC / weight_HW[..., None]).astype(np.float32)


def _ramp(side: slice, whole: int, shared: int) -> np.ndarray:
    """Returns the weights along one side of a tile: 1, and less towards neighbours."""
    middle = np.arange(side.start, side.stop) + 0.5
    before = np.ones(len(middle)) if side.start == 0 else (middle - side.start) / max(1, shared)
    after = np.ones(len(middle)) if side.stop == whole else (side.stop - middle) / max(1, shared)
    return np.minimum(1, np.minimum(before, after))
