"""Whether a clip is worth training on: measures that need no network, and thresholds on them.

T frames, H rows, W columns of pixels, C = 3 colours; G grey frames that were measured.

Each measure is a number with a unit, taken on frames spread over the clip and scaled down to one size, so that it
means the same for every resolution. Thresholds are the user's: what a dim clip is depends on what the model is for.
What needs a network (aesthetics, captions that match, text in the picture) is not here.
"""

import dataclasses
from typing import Literal

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip
from sora_jax.data.curation.duplicates import perceptual_hash, pixel_digest
from sora_jax.data.curation.frames import FRAMES, grey, spread
from sora_jax.data.curation.letterbox import crop_bars, letterbox

# Raise when a measure changes: what was measured before is then measured again.
MEASURES = 1
# Short side at which sharpness is measured, px; larger frames are scaled down, smaller ones left.
_SHARPNESS_SIDE = 192
# Short side at which everything else is measured, px.
SMALL_SIDE = 72
# Luma under which a pixel is black, of 255. Black in television's range is 0 after decoding; noise lifts it.
_BLACK = 20
# Blocks that are followed, px of the small frame; how far, and over which times.
_BLOCK, _REACH, _MOTION_SECONDS, _MOTION_PAIRS = 8, 6, (0.125, 0.5), 8
# Mean change of luma in a block up to which it is the same, of 255: noise and recompression stay under it.
_SAME = 2.0
# A block has moved where that explains the change far better than standing still.
_MOVED_SHARE, _MOVED_LEVELS = 0.7, 2.0
# Share of a side that opposite bars must cover together for a clip to be dropped.
_BAR_SHARE = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """What is kept of a heap of videos; see `configs/base.py` for each key. None turns a threshold off.

    Attributes:
      shots: Whether files are cut at shot boundaries.
      shot_ratio: Change at a boundary, times the mean change of the frames around it.
      shot_change: Least change at a boundary, 0 to 255.
      windows_per_file: Most windows that are cut from a file.
      min_frames: Of a window of a video.
      letterbox: What happens to dark bars at the edges.
      min_brightness: Mean luma, 0 to 255.
      max_brightness: Mean luma, 0 to 255.
      max_black_share: Of the pixels, 0 to 1.
      max_static_share: Of the pairs of neighbouring frames, 0 to 1.
      min_motion: Mean speed, % of the short side per second.
      max_motion: Mean speed, % of the short side per second.
      min_sharpness: Variance of the Laplacian of luma, levels squared.
      duplicate_bits: Bits of 256 by which two hashes of the same pictures may differ.
      table: Folder of the measurements; None is in the workdir.
    """

    shots: bool
    shot_ratio: float
    shot_change: float
    windows_per_file: int
    min_frames: int
    letterbox: Literal["crop", "drop"] | None
    min_brightness: float | None
    max_brightness: float | None
    max_black_share: float | None
    max_static_share: float | None
    min_motion: float | None
    max_motion: float | None
    min_sharpness: float | None
    duplicate_bits: int | None
    table: str | None

    def __post_init__(self):
        for name in ("windows_per_file", "min_frames"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name, top in (("max_black_share", 1), ("max_static_share", 1), ("duplicate_bits", 256)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= top:
                raise UserError(f"{name} is {value:g}: it must be 0 to {top}")
        if min(self.shot_ratio, self.shot_change) <= 0:
            raise UserError(f"shot_ratio {self.shot_ratio:g} and shot_change {self.shot_change:g} must be more than 0")

    @property
    def windowed(self) -> bool:
        """Whether a file may become something else than its first frames."""
        return self.shots or self.windows_per_file > 1

    @property
    def off(self) -> bool:
        """Whether nothing is asked for, so that no file needs to be measured."""
        thresholds = (getattr(self, limit.key) for limit in LIMITS)
        return not self.windowed and all(v is None for v in (*thresholds, self.letterbox, self.duplicate_bits))

    def measured_with(self) -> dict[str, object]:
        """Returns what the windows and their scores depend on: not the thresholds, which are applied afterwards."""
        shots = [self.shot_ratio, self.shot_change] if self.shots else None
        return {
            "measures": MEASURES,
            "shots": shots,
            "windows_per_file": self.windows_per_file,
            "min_frames": self.min_frames,
            "crop": self.letterbox == "crop",
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """One threshold: the key of `CurationConfig`, the score it is for, on which side of it, and the words."""

    key: str
    score: str
    least: bool
    words: str


LIMITS = (
    Limit(key="min_brightness", score="brightness", least=True, words="brightness {:.1f} of 255"),
    Limit(key="max_brightness", score="brightness", least=False, words="brightness {:.1f} of 255"),
    Limit(key="max_black_share", score="black_share", least=False, words="share {:.3f} of black pixels"),
    Limit(key="max_static_share", score="static_share", least=False, words="share {:.3f} of frames that do not change"),
    Limit(key="min_motion", score="motion", least=True, words="motion {:.2f} % of the short side per second"),
    Limit(key="max_motion", score="motion", least=False, words="motion {:.2f} % of the short side per second"),
    Limit(key="min_sharpness", score="sharpness", least=True, words="sharpness {:.1f}"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What was measured of a clip. An image has no `static_share` and no `motion`.

    Attributes:
      brightness: Mean luma, 0 to 255.
      black_share: Share of pixels with luma under 20, 0 to 1.
      static_share: Share of neighbouring frames that are the same picture, 0 to 1.
      motion: Mean speed of blocks, % of the short side per second.
      sharpness: Variance of the Laplacian, levels squared.
      bars: Dark rows or columns at (top, bottom, left, right), px of the clip.
      colour: Mean red, green and blue, 0 to 255.
      likeness: Perceptual hash, 256 bits in hex.
      digest: sha256 of shape and pixels, in hex.
    """

    brightness: float
    black_share: float
    static_share: float | None
    motion: float | None
    sharpness: float
    bars: tuple[int, int, int, int]
    colour: tuple[float, float, float]
    likeness: str
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The scores of a clip and why it is dropped; None keeps it."""

    scores: Scores
    reason: str | None


def assess(clip: Clip, config: CurationConfig) -> Verdict:
    """Returns what is thought of one clip; duplicates take two, see `duplicates.find_duplicates`."""
    scores = measure(clip, crop=config.letterbox == "crop")
    return Verdict(scores=scores, reason=refuse(scores, clip.pixels_THWC.shape[1:3], config))


def measure(clip: Clip, *, crop: bool) -> Scores:
    """Returns the scores of a clip; with `crop` those of what lies within its bars."""
    bars = letterbox(clip.pixels_THWC)
    pixels_THWC = crop_bars(clip.pixels_THWC, bars) if crop else clip.pixels_THWC
    some_GHWC = pixels_THWC[spread(len(pixels_THWC), FRAMES)]
    small_GHW = grey(some_GHWC, short_side=SMALL_SIDE)
    video = len(pixels_THWC) > 1
    red, green, blue = some_GHWC.mean(axis=(0, 1, 2)).tolist()
    return Scores(
        brightness=brightness(small_GHW),
        black_share=black_share(small_GHW),
        static_share=static_share(pixels_THWC) if video else None,
        motion=motion(pixels_THWC, fps=clip.fps) if video else None,
        sharpness=sharpness(grey(some_GHWC[:: max(1, len(some_GHWC) // 4)], short_side=_SHARPNESS_SIDE)),
        bars=bars,
        colour=(red, green, blue),
        likeness=perceptual_hash(pixels_THWC),
        digest=pixel_digest(pixels_THWC),
    )


def refuse(scores: Scores, size: tuple[int, int], config: CurationConfig) -> str | None:
    """Returns why a clip of `size` = (rows, columns) is dropped, with number and threshold; None keeps it."""
    for limit in LIMITS:
        score, threshold = getattr(scores, limit.score), getattr(config, limit.key)
        if score is None or threshold is None:
            continue
        if score < threshold if limit.least else score > threshold:
            side = "under" if limit.least else "over"
            return f"{limit.words.format(score)} is {side} {limit.key} = {threshold:g}"
    top, bottom, left, right = scores.bars
    if config.letterbox == "drop" and max((top + bottom) / size[0], (left + right) / size[1]) > _BAR_SHARE:
        return f"bars of {top} + {bottom} rows and {left} + {right} columns are over {_BAR_SHARE:g} of a side"
    return None


def brightness(grey_GHW: np.ndarray) -> float:
    """Returns the mean luma, 0 (black) to 255 (white)."""
    return float(grey_GHW.mean())


def black_share(grey_GHW: np.ndarray) -> float:
    """Returns the share of pixels whose luma is under 20 of 255, 0 to 1."""
    return float((grey_GHW < _BLACK).mean())


def static_share(pixels_THWC: np.ndarray) -> float:
    """Returns the share of neighbouring frames that are the same picture, 0 to 1; at least 2 frames.

    The same: in no block of 8 px, at a short side of 72 px, does luma change by more than 2 of 255 on average.
    """
    assert len(pixels_THWC) > 1, pixels_THWC.shape
    first_G = spread(len(pixels_THWC) - 1, FRAMES)
    before_GHW = grey(pixels_THWC[first_G], short_side=SMALL_SIDE).astype(np.int16)
    after_GHW = grey(pixels_THWC[first_G + 1], short_side=SMALL_SIDE).astype(np.int16)
    change_G = _by_block(np.abs(after_GHW - before_GHW)).max(axis=(1, 2))
    return float((change_G <= _SAME).mean())


def motion(pixels_THWC: np.ndarray, *, fps: float) -> float:
    """Returns the mean speed of blocks, % of the short side per second; at least 2 frames.

    Block matching: in up to 8 pairs of frames each block of 8 px, at a short side of 72 px, is looked for within 6 px,
    and has moved where the best place explains it far better than the place it had. Blocks without texture have not
    moved. So a camera that moves counts with the whole picture, a thing that moves with its share of it. Pairs are
    1/8 s apart for what is fast (up to some 65 % per second) and 1/2 s for what is slow (from some 2 %); the larger
    mean counts.
    """
    assert len(pixels_THWC) > 1, pixels_THWC.shape
    frames = len(pixels_THWC)
    gaps = {min(frames - 1, max(1, round(fps * seconds))) for seconds in _MOTION_SECONDS}
    speeds = []
    for gap in gaps:
        first_G = spread(frames - gap, _MOTION_PAIRS)
        before_GHW = grey(pixels_THWC[first_G], short_side=SMALL_SIDE).astype(np.int16)
        after_GHW = grey(pixels_THWC[first_G + gap], short_side=SMALL_SIDE).astype(np.int16)
        # A camera that adapts to the light changes all of the picture, and nothing has moved.
        light_G11 = np.median(after_GHW - before_GHW, axis=(1, 2), keepdims=True).astype(np.int16)
        moved = _block_displacement(before_GHW + light_G11, after_GHW)
        speeds.append(100 * moved / min(after_GHW.shape[1:]) * fps / gap)
    return max(speeds)


def _block_displacement(before_GHW: np.ndarray, after_GHW: np.ndarray) -> float:
    """Returns the mean length, px, of the displacements of blocks."""
    height, width = after_GHW.shape[1:]
    padded_GHW = np.pad(before_GHW, ((0, 0), (_REACH, _REACH), (_REACH, _REACH)), mode="edge")
    steps = range(-_REACH, _REACH + 1)
    shifts = sorted(((dy, dx) for dy in steps for dx in steps), key=lambda step: step[0] ** 2 + step[1] ** 2)
    still = best = length = None
    for dy, dx in shifts:
        shifted_GHW = padded_GHW[:, _REACH - dy : _REACH - dy + height, _REACH - dx : _REACH - dx + width]
        error = _by_block(np.abs(after_GHW - shifted_GHW))
        if still is None or best is None or length is None:
            still, best, length = error, error.copy(), np.zeros_like(error)
            continue
        closer = error < best
        length[closer] = (dy * dy + dx * dx) ** 0.5
        best[closer] = error[closer]
    assert still is not None
    assert best is not None
    assert length is not None
    moved = (best < _MOVED_SHARE * still) & (still > _MOVED_LEVELS)
    return float(np.where(moved, length, 0).mean())


def _by_block(grey_GHW: np.ndarray) -> np.ndarray:
    """Returns float32 means over blocks, (G, rows of blocks, columns of blocks); what fills no block is left out."""
    block = min(_BLOCK, *grey_GHW.shape[1:])
    height, width = (side // block for side in grey_GHW.shape[1:])
    whole_GHW = grey_GHW[:, : height * block, : width * block]
    return whole_GHW.reshape(-1, height, block, width, block).mean(axis=(2, 4), dtype=np.float32)


def sharpness(grey_GHW: np.ndarray) -> float:
    """Returns the variance of the Laplacian of luma, levels squared, median over frames; 0 where nothing is sharp.

    From 0 to 1000s. Five points (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR
    2000), at a short side of 192 px; smaller frames are measured as they are. Smooth scenes are low without blur.
    """
    grey_GHW = grey_GHW.astype(np.float32)
    if min(grey_GHW.shape[1:]) < 3:
        return 0.0
    around = grey_GHW[:, :-2, 1:-1] + grey_GHW[:, 2:, 1:-1] + grey_GHW[:, 1:-1, :-2] + grey_GHW[:, 1:-1, 2:]
    return float(np.median((around - 4 * grey_GHW[:, 1:-1, 1:-1]).var(axis=(1, 2))))
