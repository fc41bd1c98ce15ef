"""What a given video shows stays in the larger or faster one that is made of it: details alone are new.

Letters: T H W C frames, rows, columns, colours of pixels.
"""

from collections.abc import Callable

import numpy as np

from sora_jax.data.clips import covering


def keeping(
    emit: Callable[[np.ndarray], None], given_THWC: np.ndarray, *, size: tuple[int, int], frames: int
) -> Callable[[np.ndarray], None]:
    """Returns what takes a video of `frames` frames of `size`, in pieces, and emits it with what is given in it.

    Where a frame is one of the given video, what the given one shows at its size takes the place of what the made one
    shows at that size: the frame as it is given if it is as large. Others are emitted as they are made.
    """
    number_T = np.linspace(0, len(given_THWC) - 1, frames)
    done = 0

    def take(made_THWC: np.ndarray) -> None:
        nonlocal done
        place_T = number_T[done : done + len(made_THWC)]
        done += len(made_THWC)
        there_T = np.isclose(place_T, np.round(place_T), atol=1e-6)
        result_THWC = made_THWC.copy()
        if there_T.any():
            shown_THWC = given_THWC[np.round(place_T[there_T]).astype(int)]
            result_THWC[there_T] = _corrected(made_THWC[there_T], shown_THWC, size=size)
        emit(result_THWC)

    return take


def _corrected(made_THWC: np.ndarray, shown_THWC: np.ndarray, *, size: tuple[int, int]) -> np.ndarray:
    """Returns made frames with what they show at the size of the given ones replaced by these; uint8."""
    again_THWC = covering(covering(made_THWC, shown_THWC.shape[1:3]), size)
    result_THWC = made_THWC.astype(np.int16) + covering(shown_THWC, size) - again_THWC
    return np.clip(result_THWC, 0, 255).astype(np.uint8)
