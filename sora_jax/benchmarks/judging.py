"""How long a set of clips takes to be judged by every score that needs no weights.

  python -m sora_jax.benchmarks.judging --json=FILE

Drawn clips stand for real ones and their mirror images, blurred, for made ones. Compiling counts.
"""

import time
from collections.abc import Sequence

import numpy as np

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.core.commands import Flags, run_command
from sora_jax.data.sources.shapes_world import ShapesWorld, WorldConfig
from sora_jax.evaluation.features import load_image_features, load_video_features
from sora_jax.evaluation.generated import JudgedClip, Judges, compare_sets, measure_set

_FLAGS = Flags()
_JSON = _FLAGS.figures()
_CLIPS = _FLAGS.integer("clips", 256, "Of each set.", least=3)
_FRAMES = _FLAGS.integer("frames", 9, "Of a clip.", least=2)
_SIDE = _FLAGS.integer("side", 32, "Height and width, px.", least=16)


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    publish(judging_figures(_CLIPS.value, frames=_FRAMES.value, side=_SIDE.value), _JSON.value)


def judging_figures(count: int, *, frames: int, side: int) -> list[Figure]:
    """Returns how long `count` drawn clips take, and the distances of these and of blurred ones."""
    world = ShapesWorld(
        WorldConfig(
            seed=0,
            num_clips=count,
            sides=((side, side),),
            frames=(frames,),
            image_share=0.0,
            fps=(8.0,),
            max_objects=1,
            occluder=False,
            split="heldout",
        )
    )
    real = [world[index].pixels_THWC for index in range(count)]
    judges = Judges(image=load_image_features(None), video=load_video_features(None))
    known = measure_set(_shown(real), judges)
    mirrored = [clip_THWC[:, :, ::-1] for clip_THWC in real]
    figures, began = [], time.perf_counter()
    for name, clips in {"mirrored": mirrored, "blurred": [_blurred(clip_THWC) for clip_THWC in mirrored]}.items():
        scores = compare_sets(known, measure_set(_shown(clips), judges), judges)
        for score in ("fvd_random", "fid_random"):
            told = f"{score} of {count} real clips and their mirror images{', blurred' if name == 'blurred' else ''}"
            figures.append(Figure(name=f"{score}_{name}", value=scores[score]["value"], target=None, meaning=told))
    seconds = (time.perf_counter() - began) / 2
    told = f"seconds in which {count} clips of {frames}x{side}x{side} are judged by every score without weights"
    return [Figure(name="seconds", value=seconds, target="under 60", meaning=told), *figures]


def _shown(clips: Sequence[np.ndarray]) -> list[JudgedClip]:
    return [JudgedClip(clip_THWC=clip_THWC, fps=8.0, caption=None) for clip_THWC in clips]


def _blurred(clip_THWC: np.ndarray) -> np.ndarray:
    """Returns means over windows of 3 x 3 px, half of which a clip's edge repeats."""
    padded = np.pad(clip_THWC, [(0, 0), (1, 1), (1, 1), (0, 0)], "edge").astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return windows.mean(axis=(-2, -1)).astype(np.uint8)


if __name__ == "__main__":
    run_command(main, _FLAGS)
