"""Does the game obey its actions, its walls and its coin?"""

import numpy as np

from sora_jax.data.scenes.drawing import centres
from sora_jax.data.scenes.game import COIN, COLUMNS, FRAMES_OF_ACTION, POOR, RICH, ROWS, GameScene
from sora_jax.evaluation.probes.tracking import ProbeVerdict, cover_of, distance, middle_of, probe_verdict

_TURNING = "cyan"  # between both colours of the player, as an autoencoder blends them when it takes the coin
_LEAST, _MOST = 0.4, 1.7  # of the player's area
_THERE = 0.4  # of the coin's colour, mean over its middle
_OFF_PATH = 0.3  # cells, that the player may be from its place, mean over frames
_MIDDLE = 0.2  # radius of that, of a cell's height


def read_game(scene: GameScene, pixels_THWC: np.ndarray, given: int) -> ProbeVerdict:
    """Returns whether the player is in its cell after every action, on its `path` between, and the `coin` where due.

    `free`: it is never in a wall. `actions` is the share of actions that lead to the right cell, `walls` that of frames
    in which the player is in one.
    """
    poor_THW, rich_THW = (cover_of(pixels_THWC, colour) for colour in (POOR, RICH))
    player_THW = poor_THW + rich_THW + cover_of(pixels_THWC, _TURNING)
    truth_THWC = scene.render()
    area = sum(float(cover_of(truth_THWC[:1], colour).sum()) for colour in (POOR, RICH))
    mass_T = player_THW.sum(axis=(1, 2)) / area
    there_T = (mass_T > _LEAST) & (mass_T < _MOST)
    cell = np.array([scene.form.height / ROWS, scene.form.width / COLUMNS])
    place_T2 = np.nan_to_num(middle_of(player_THW), nan=-1.0) / cell
    cells_T = [
        tuple(map(int, np.floor(place))) if there else None for place, there in zip(place_T2, there_T, strict=True)
    ]
    off_path = distance(place_T2[given:] - 0.5, scene.place_T2()[given:])
    after = range(FRAMES_OF_ACTION, len(pixels_THWC), FRAMES_OF_ACTION)
    right = [cells_T[frame] == scene.cells()[frame // FRAMES_OF_ACTION] for frame in after if frame >= given]
    walls = [cell in scene.walls for cell in cells_T[given:]]
    row_H1, column_W = centres(scene.form)
    row, column = scene.centre(scene.coin)
    near_HW = (row_H1 - row) ** 2 + (column_W - column) ** 2 < (_MIDDLE * cell[0]) ** 2
    left = cover_of(pixels_THWC[-1:], COIN)[0][near_HW].mean() > _THERE
    rich = bool(scene.rich_T()[-1])
    return probe_verdict(
        {
            "cells": all(right),
            "path": off_path < _OFF_PATH,
            "free": not any(walls),
            "coin": left != rich and (rich_THW[-1].sum() > poor_THW[-1].sum()) == rich,
        },
        actions=float(np.mean(right)),
        walls=float(np.mean(walls)),
    )
