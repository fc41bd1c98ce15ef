"""The digital world: a player on a grid with walls and a coin, moved by the actions that the caption tells.

An action takes four frames. A player that would leave the grid or enter a wall stays; where it takes the coin this
vanishes, and the player is green from then on instead of blue.
"""

import dataclasses
import itertools

import numpy as np

from sora_jax.data.scenes.drawing import ClipForm, as_pixels, centres, one_of, paint, plain, rectangle
from sora_jax.data.sources.shapes_world import DIRECTIONS, PALETTE, coverage

ROWS, COLUMNS = 3, 5
FRAMES_OF_ACTION = 4
POOR, RICH, COIN = "blue", "green", "yellow"
_WALLS = 3
_LEVEL, _LINE, _WALL_COLOUR = 205, (186, 186, 186), (62, 58, 60)
_PLAYER, _COIN, _WALL = 0.34, 0.3, 0.46  # half of the box, of a cell's height

Cell = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GameScene:
    """A game as it is played.

    Attributes:
      form: How large and long the clip is.
      actions: Names of `DIRECTIONS`, as many as the clip has time for.
      walls: Cells (row, column) that cannot be entered.
      coin: Its cell.
      start: Cell of the player in the first frame.
    """

    form: ClipForm
    actions: tuple[str, ...]
    walls: tuple[Cell, ...]
    coin: Cell
    start: Cell

    variant = "game"

    @property
    def held_out(self) -> bool:
        """A third of the sequences of actions."""
        numbers = [list(DIRECTIONS).index(action) for action in self.actions]
        return sum((1 + place % 2) * number for place, number in enumerate(numbers)) % 3 == 0

    def cells(self) -> tuple[Cell, ...]:
        """Returns the player's cell in the first frame and after each action."""
        found = [self.start]
        for action in self.actions:
            row, column = (a + b for a, b in zip(found[-1], DIRECTIONS[action], strict=True))
            inside = 0 <= row < ROWS and 0 <= column < COLUMNS
            found.append((row, column) if inside and (row, column) not in self.walls else found[-1])
        return tuple(found)

    def place_T2(self) -> np.ndarray:
        """Returns the player's row and column in every frame, in cells, whole where it is in the middle of one."""
        cells_N2 = np.array(self.cells(), np.float64)
        at_T = np.minimum(np.arange(self.form.frames) / FRAMES_OF_ACTION, len(self.actions))
        return np.stack([np.interp(at_T, np.arange(len(cells_N2)), cells_N2[:, axis]) for axis in range(2)], axis=1)

    def rich_T(self) -> np.ndarray:
        """Returns in which frames the player has the coin: from the end of the action that leads to it."""
        taken = [number for number, cell in enumerate(self.cells()) if cell == self.coin]
        first = taken[0] * FRAMES_OF_ACTION if taken else self.form.frames
        return np.arange(self.form.frames) >= first

    def centre(self, cell: Cell) -> tuple[float, float]:
        """Returns row and column of the middle of a cell, px."""
        return (cell[0] + 0.5) * self.form.height / ROWS, (cell[1] + 0.5) * self.form.width / COLUMNS

    def captions(self) -> tuple[str, ...]:
        """Returns what may be said of the clip."""
        said = " ".join(self.actions)
        return f"the player goes {said}", f"a game played by {said}"

    def render(self) -> np.ndarray:
        """Returns the pixels, uint8 (T, H, W, 3)."""
        form, cell = self.form, self.form.height / ROWS
        row_H1, column_W = centres(form)
        pixels_THWC = plain(form, _LEVEL)
        odd_HW = (np.floor(row_H1 * ROWS / form.height) + np.floor(column_W * COLUMNS / form.width)) % 2
        paint(pixels_THWC, odd_HW, _LINE)
        for wall in self.walls:
            row, column = self.centre(wall)
            half_width = _WALL * form.width / COLUMNS
            cover_HW = rectangle(row_H1 - row, column_W - column, half_height=_WALL * cell, half_width=half_width)
            paint(pixels_THWC, cover_HW, _WALL_COLOUR)
        row, column = self.centre(self.coin)
        rich_T11 = self.rich_T()[:, None, None]
        cover_HW = coverage("circle", row_H1 - row, column_W - column, radius=_COIN * cell)
        paint(pixels_THWC, ~rich_T11 * cover_HW, PALETTE[COIN])
        place_T211 = self.place_T2()[:, :, None, None] + 0.5
        row_T11, column_T11 = place_T211[:, 0] * form.height / ROWS, place_T211[:, 1] * form.width / COLUMNS
        half = _PLAYER * cell
        cover_THW = rectangle(row_H1 - row_T11, column_W - column_T11, half_height=half, half_width=half)
        paint(pixels_THWC, ~rich_T11 * cover_THW, PALETTE[POOR])
        paint(pixels_THWC, rich_T11 * cover_THW, PALETTE[RICH])
        return as_pixels(pixels_THWC)


def draw_game(generator: np.random.Generator, form: ClipForm) -> GameScene:
    """Returns a game drawn from the generator: most actions move the player, and half of the coins lie on its way."""
    while True:
        actions = tuple(one_of(generator, tuple(DIRECTIONS)) for _ in range((form.frames - 1) // FRAMES_OF_ACTION))
        order = generator.permutation(ROWS * COLUMNS)
        cells = [(int(number) // COLUMNS, int(number) % COLUMNS) for number in order]
        game = GameScene(form=form, actions=actions, walls=tuple(cells[:_WALLS]), coin=cells[-1], start=cells[_WALLS])
        path = game.cells()
        if 2 * sum(before != after for before, after in itertools.pairwise(path)) > len(actions):
            break
    passed = [cell for cell in path if cell != game.start]
    if passed and generator.random() < 0.5:
        return dataclasses.replace(game, coin=passed[generator.integers(len(passed))])
    return game
