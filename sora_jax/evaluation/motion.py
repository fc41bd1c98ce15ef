"""How clips move, without the weights of any network: flicker, smoothness, length of the flow, drift.

They compare neighbouring frames, or frames some way apart; None where a clip has too few. Real clips have values of
their own, and it is those that made clips should have: a still clip flickers least. None of them is a number of VBench
but `temporal_flickering`, which is the same.

Letters: T H W C pixels or latents, P pairs of neighbouring frames.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Distances in frames over which drift is measured: neighbours do not show what changes slowly.
DRIFT_DISTANCES = (2, 5, 10, 20, 50)
_FASTEST = 0.05  # share of the pixels whose flow counts
_SMALLEST_SIDE = 16  # px of the coarsest level of the pyramid
_MOST_LEVELS = 4
_STEPS = 4  # of Gauss-Newton at each level
_WINDOW = np.array([1, 4, 6, 4, 1], np.float32) / 16
# Added to the matrix of squared gradients of pixels in [0, 1]: flat regions, which tell no flow, have none.
_REGULAR = 3e-4
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def temporal_flickering(clip_THWC: np.ndarray) -> float | None:
    """Returns 1 - mean |difference of neighbouring frames| / 255 of a uint8 clip, at most 1 (a still clip)."""
    if len(clip_THWC) < 2:
        return None
    return 1 - float(np.abs(np.diff(clip_THWC.astype(np.float32), axis=0)).mean()) / 255


def smoothness_blend(clip_THWC: np.ndarray) -> float | None:
    """Returns 1 - mean |every second frame - mean of its neighbours| / 255 of a uint8 clip, at most 1."""
    if len(clip_THWC) < 3:
        return None
    frames = clip_THWC.astype(np.float32)
    blended = (frames[:-2:2] + frames[2::2]) / 2
    return 1 - float(np.abs(frames[1:-1:2] - blended).mean()) / 255


def dynamic_flow(clip_THWC: np.ndarray, fps: float) -> float | None:
    """Returns how fast the fastest twentieth of the pixels of a uint8 clip moves, in shorter sides a second.

    It is compiled for every shape.
    """
    if len(clip_THWC) < 2:
        return None
    shorter = min(clip_THWC.shape[1:3])
    return float(_fastest(clip_THWC)) * fps / shorter


def drift(clip_THWC: np.ndarray, distance: int) -> float | None:
    """Returns the mean change, over 255, of the means and deviations of the colours between frames so far apart.

    What moves within the frame hardly changes these; a picture that fades, reddens or loses contrast does.
    """
    if len(clip_THWC) <= distance:
        return None
    return _change(clip_THWC, distance) / 255


def latent_drift(latent_THWC: np.ndarray, distance: int, *, stride: int) -> float | None:
    """Returns the same of the channels of a latent of about unit variance, which has a frame for `stride` of pixels.

    `distance` is in frames of pixels, and rounded down to those of latents; None where that is 0. Of what the
    autoencoder keeps of a picture only its brightness and colours are in `drift`.
    """
    apart = distance // stride
    return _change(latent_THWC, apart) if 0 < apart < len(latent_THWC) else None


def _change(clip_THWC: np.ndarray, distance: int) -> float:
    """Returns the mean change of the means and deviations of channels between frames so far apart."""
    frames = clip_THWC.astype(np.float32)
    statistics = np.concatenate([frames.mean(axis=(1, 2)), frames.std(axis=(1, 2))], axis=-1)
    return float(np.abs(statistics[distance:] - statistics[:-distance]).mean())


@jax.jit
def _fastest(clip_THWC: jax.Array) -> jax.Array:
    """Returns px a frame: the mean over pairs of neighbouring frames."""
    grey_THW = clip_THWC.astype(jnp.float32) @ _LUMA / 255
    flow_PHW2 = jax.vmap(optical_flow)(grey_THW[:-1], grey_THW[1:])
    length_PN = jnp.linalg.norm(flow_PHW2, axis=-1).reshape(len(flow_PHW2), -1)
    count = max(1, round(_FASTEST * length_PN.shape[1]))
    return jax.lax.top_k(length_PN, count)[0].mean()


def optical_flow(first_HW: jax.Array, second_HW: jax.Array) -> jax.Array:
    """Returns float32 (H, W, 2), rows and columns in px that each pixel of a grey frame in [0, 1] moves to the second.

    Lucas and Kanade 1981 in a pyramid (Bouguet 2000): at each level of half the size, coarse ones first, the second
    frame is moved back by the flow so far, and least squares in a window around each pixel correct it.
    """
    pyramid = [(first_HW, second_HW)]
    while len(pyramid) < _MOST_LEVELS and min(pyramid[-1][0].shape) >= 2 * _SMALLEST_SIDE:
        pyramid.append((_halved(pyramid[-1][0]), _halved(pyramid[-1][1])))
    flow_HW2 = jnp.zeros((*pyramid[-1][0].shape, 2), jnp.float32)
    for first, second in reversed(pyramid):
        if flow_HW2.shape[:2] != first.shape:
            flow_HW2 = 2 * jax.image.resize(flow_HW2, (*first.shape, 2), "linear")
        step = functools.partial(_corrected, first, second)
        flow_HW2 = jax.lax.fori_loop(0, _STEPS, lambda _, flow, step=step: step(flow), flow_HW2)
    return flow_HW2


def _corrected(first_HW: jax.Array, second_HW: jax.Array, flow_HW2: jax.Array) -> jax.Array:
    places = jnp.stack(jnp.meshgrid(*(jnp.arange(side, dtype=jnp.float32) for side in first_HW.shape), indexing="ij"))
    moved_HW = jax.scipy.ndimage.map_coordinates(
        second_HW, list(places + jnp.moveaxis(flow_HW2, -1, 0)), order=1, mode="nearest"
    )
    rows, columns = jnp.gradient((first_HW + moved_HW) / 2)
    error = first_HW - moved_HW
    a, b, c = _summed(rows * rows) + _REGULAR, _summed(rows * columns), _summed(columns * columns) + _REGULAR
    p, q = _summed(rows * error), _summed(columns * error)
    change = jnp.stack([c * p - b * q, a * q - b * p], axis=-1) / (a * c - b * b)[..., None]
    # A step of more than a pixel is beyond what gradients tell.
    return flow_HW2 + jnp.clip(change, -1, 1)


def _halved(frame_HW: jax.Array) -> jax.Array:
    height, width = frame_HW.shape
    return jax.image.resize(frame_HW, (height // 2, width // 2), "linear")


def _summed(x_HW: jax.Array) -> jax.Array:
    """Returns the mean over a window around each pixel."""
    for axis in (0, 1):
        pad = [(2, 2) if axis == one else (0, 0) for one in (0, 1)]
        padded, length = jnp.pad(x_HW, pad, mode="edge"), x_HW.shape[axis]
        parts = [jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(len(_WINDOW))]
        x_HW = jnp.tensordot(_WINDOW, jnp.stack(parts), 1)
    return x_HW
