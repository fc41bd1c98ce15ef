"""Where a video is cut: shots, and the windows of each shot that become clips.

T frames, H rows, W columns of pixels, C = 3 colours. A window is (first, last), numbers of frames, both included.

Boundaries are found by PySceneDetect's adaptive detector: the change of hue, saturation and luma between neighbouring
frames, against the mean of the two changes before and after. It finds hard cuts; fades and dissolves change little
from frame to frame and are not found.
"""

import importlib
import itertools
from typing import Any

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.data.clips import FrameRange

# Frames that a shot has at least: a flash is not two cuts.
_SHORTEST_SHOT = 3


def find_shots(pixels_THWC: np.ndarray, *, ratio: float, change: float) -> list[FrameRange]:
    """Returns the shots of a video, in order and without gaps; frames may be (and had better be) scaled down.

    Args:
      pixels_THWC: uint8.
      ratio: A boundary changes the frame by this many times the mean change around it.
      change: And by at least this much, 0 to 255.

    Raises:
      UserError: PySceneDetect is not installed.
    """
    scenes, detectors = load_detector()
    detector = detectors.AdaptiveDetector(
        adaptive_threshold=ratio, min_content_val=change, min_scene_len=_SHORTEST_SHOT
    )
    cuts: list[int] = []
    for number, pixels_HWC in enumerate(pixels_THWC):
        blue_first_HWC = np.ascontiguousarray(pixels_HWC[..., ::-1])
        # Only the order of frames counts, so that any rate will do.
        found = detector.process_frame(scenes.FrameTimecode(number, 25.0), blue_first_HWC)
        cuts += [cut.frame_num for cut in found]
    edges = [0, *cuts, len(pixels_THWC)]
    return [(first, after - 1) for first, after in itertools.pairwise(edges)]


def load_detector() -> tuple[Any, Any]:
    """Returns the modules of PySceneDetect; raises UserError where it is not installed."""
    try:
        return importlib.import_module("scenedetect"), importlib.import_module("scenedetect.detectors")
    except ImportError as error:
        raise UserError(
            f"data.curation.shots needs PySceneDetect ({error}): pip install scenedetect-headless, or turn shots off"
        ) from error


def cut_windows(shots: list[FrameRange], *, max_frames: int, min_frames: int, at_most: int) -> list[FrameRange]:
    """Returns at most `at_most` windows, in order, that do not overlap and lie each within a shot.

    Each shot is cut from its start into windows of `max_frames` frames; a rest of at least `min_frames` is one too.
    Where there are more than `at_most`, they are chosen evenly from the first to the last.
    """
    windows = []
    for first, last in shots:
        for start in range(first, last + 1, max_frames):
            end = min(start + max_frames - 1, last)
            if end - start + 1 >= min(min_frames, max_frames):
                windows.append((start, end))
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(at_most, len(windows))).round().astype(int))
    return [windows[number] for number in chosen]
