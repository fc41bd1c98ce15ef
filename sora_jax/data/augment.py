"""Windows as no clip shows them: mirrored, in other colours, with moving cutouts in front.

A folder of few clips holds few colours, edges and motions. What an autoencoder cannot lean on there it has to learn to
carry. Pixels are altered, never resized; letters: T H W C frames, rows, columns, colours.
"""

import numpy as np

_RECOLOURED = 0.25  # share of the altered windows whose colours change
_FLAT = 0.7  # share whose ground becomes one colour, behind cutouts
_CUTOUTS = 0.6  # share with cutouts in front, where the ground is not flat
_CONTRAST = (0.7, 2.0)  # range of a colour's gain; saturated colours come from gains over 1
_OFFSET = 60.0  # most that is added to a colour, of 255
_RADII = (0.12, 0.4)  # range of a cutout's two radii, as shares of the shorter side
_SPEED = 3.0  # most px that a cutout moves along an axis from a frame to the next
_EXPONENTS = (1.0, 2.0, 16.0)  # of superellipses: diamonds, ellipses, rectangles


def alter(window_THWC: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns another uint8 window of the same shape, a function of the window and the generator's draws."""
    made = window_THWC[:, :, ::-1] if generator.random() < 0.5 else window_THWC
    if generator.random() < _RECOLOURED:
        made = recoloured(made, generator)
    flat = generator.random() < _FLAT
    if flat:
        made = _one_colour(made.shape, generator)
    if flat or generator.random() < _CUTOUTS:
        for _ in range(generator.integers(1, 3)):
            inside = _one_colour(made.shape, generator)
            if generator.random() < 0.5:
                inside = recoloured(window_THWC[::-1, ::-1], generator)
            cover_THW1 = cutout(made.shape[:3], generator)[..., None]
            made = np.rint(made + cover_THW1 * (inside.astype(np.float32) - made)).astype(np.uint8)
    return np.ascontiguousarray(made)


def recoloured(window_THWC: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns the window with its colours exchanged, each inverted or not, with another contrast and brightness."""
    gain_C = generator.choice([-1, 1], 3) * generator.uniform(*_CONTRAST, 3)
    offset_C = generator.uniform(-_OFFSET, _OFFSET, 3)
    colours = window_THWC[..., generator.permutation(3)].astype(np.float32) - 127.5
    return np.clip(np.rint(colours * gain_C.astype(np.float32) + offset_C + 127.5), 0, 255).astype(np.uint8)


def cutout(size: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Returns the share of each pixel, float32 (T, H, W) in [0, 1], that a superellipse covers on its straight way.

    It passes through the middle of the window's half of each side when half of the frames are over, and stands upright
    half of the time; so does it keep to a row or a column.
    """
    frames, *sides = size
    middle = [generator.uniform(0.2, 0.8) * side for side in sides]
    speed = generator.uniform(-_SPEED, _SPEED, 2)
    if generator.random() < 0.5:
        speed[generator.integers(2)] = 0.0
    radii = generator.uniform(*_RADII, 2) * min(sides)
    exponent = generator.choice(_EXPONENTS)
    angle = generator.integers(2) * generator.uniform(0, np.pi)
    time_T = (np.arange(frames, dtype=np.float32) - (frames - 1) / 2)[:, None, None]
    row = np.arange(sides[0], dtype=np.float32)[:, None] + 0.5 - middle[0] - speed[0] * time_T
    column = np.arange(sides[1], dtype=np.float32) + 0.5 - middle[1] - speed[1] * time_T
    along = np.abs(np.cos(angle) * row + np.sin(angle) * column) / radii[0]
    across = np.abs(np.cos(angle) * column - np.sin(angle) * row) / radii[1]
    # The norm by its larger part, as powers of 16 would overflow nothing but say nothing near 0.
    larger = np.maximum(along, across)
    norm = larger * (1 + (np.minimum(along, across) / np.maximum(larger, 1e-6)) ** exponent) ** (1 / exponent)
    return np.clip(0.5 - (norm - 1) * radii.min(), 0, 1).astype(np.float32)


def _one_colour(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Returns a view of this shape of one colour, grey half of the time."""
    colour_C = generator.integers(0, 256, 3 if generator.random() < 0.5 else 1, dtype=np.uint8)
    return np.broadcast_to(colour_C, shape)
