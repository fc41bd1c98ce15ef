"""What training will do to each clip of a source: kept or left out and why, what is cut, how rows will fill.

T frames, H rows, W columns of pixels; N clips, B rows of a global batch, L tokens of a row.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from sora_jax.data.clips import BadClip, Clip, Fitted
from sora_jax.data.fitting import ClipBudget
from sora_jax.data.packing.pipeline import PackingConfig
from sora_jax.data.packing.rows import Lengths, Pool, RowPlan
from sora_jax.data.sources.base import Source, read_ahead
from sora_jax.data.tokens import Tokenizer

_SHOWN_SIDE = 192  # px, of the pictures
_KEPT_COLOUR = (255, 70, 40)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """One clip before and after it is fitted.

    Attributes:
      source_id: Its name.
      captions: All that it has.
      size: Native (T, H, W), of the frames that were read.
      fitted: (T, H, W) as it will be encoded.
      fps: Frames per second.
      tokens: Of the fitted clip.
      text_tokens: Of each caption, before it is cut.
      scale: Isotropic factor on both sides, in (0, 1].
      trimmed_frames: Cut from the end.
      cropped: Rows and columns cut from the scaled frames.
      cut: Share of the picture that they are, in [0, 1).
      used: Share of the frames of its file that will be encoded, in (0, 1]; None where that is not known.
      pictures: uint8 (H, W, 3) of the middle frame, small, with what is kept drawn in, and as the model will see it;
        None for clips that are not shown.
    """

    source_id: str
    captions: tuple[str, ...]
    size: tuple[int, int, int]
    fitted: tuple[int, int, int]
    fps: float
    tokens: int
    text_tokens: tuple[int, ...]
    scale: float
    trimmed_frames: int
    cropped: tuple[int, int]
    cut: float
    used: float | None
    pictures: tuple[np.ndarray, np.ndarray] | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """The clips of a source that were looked at: those that will be used, and (name, reason) of the others."""

    kept: list[Look]
    dropped: list[tuple[str, str]]


def survey(
    source: Source,
    limits: ClipBudget,
    *,
    count: int | None,
    readers: int = 1,
    shown: int = 120,
    progress: Callable[[int], None] = lambda done: None,
) -> Survey:
    """Returns what will happen to `count` clips spread evenly over the source; None looks at all.

    `readers` of them are looked at side by side. At most `shown`, as evenly spread, keep pictures.
    """
    total = len(source)
    chosen = np.unique(np.linspace(0, total - 1, total if count is None else min(count, total)).astype(int)).tolist()
    every = -(-len(chosen) // shown)
    kept, dropped = [], []

    def glance(place: int) -> Look | BadClip:
        try:
            clip = source[chosen[place]]
            return look(clip, limits.cut(clip), limits.tokenizer, picture=(place + 1) % every == 0)
        except BadClip as bad:
            return bad

    with read_ahead(glance, range(len(chosen)), readers=readers) as looks:
        for done, one in enumerate(looks, start=1):
            if isinstance(one, BadClip):
                dropped.append((one.source_id, one.reason))
            else:
                kept.append(one)
            progress(done)
    return Survey(kept=kept, dropped=dropped)


def look(clip: Clip, fitted: Fitted, tokenizer: Tokenizer, *, picture: bool) -> Look:
    """Returns what is told of a clip that will be used."""
    frames, height, width = clip.pixels_THWC.shape[:3]
    kept_height, kept_width = fitted.clip.pixels_THWC.shape[1:3]
    pictures = None
    if picture:
        middle = len(fitted.clip.pixels_THWC) // 2
        area = (kept_height / fitted.scale, kept_width / fitted.scale)
        pictures = draw_cut(clip.pixels_THWC[middle], area), fitted.clip.pixels_THWC[middle].copy()
    return Look(
        source_id=clip.source_id,
        captions=clip.captions,
        size=(frames, height, width),
        fitted=(len(fitted.clip.pixels_THWC), kept_height, kept_width),
        fps=clip.fps,
        tokens=fitted.tokens,
        text_tokens=tuple(map(tokenizer.count, clip.captions)),
        scale=fitted.scale,
        trimmed_frames=fitted.trimmed_frames,
        cropped=(fitted.cropped_rows, fitted.cropped_columns),
        cut=fitted.cut,
        used=len(fitted.clip.pixels_THWC) / clip.file_frames if clip.file_frames else None,
        pictures=pictures,
    )


def draw_cut(pixels_HWC: np.ndarray, kept: tuple[float, float]) -> np.ndarray:
    """Returns the frame, small, with a frame around the (rows, columns) in its middle that are kept."""
    height, width = pixels_HWC.shape[:2]
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    factor = image.width / width
    top, left = (height - kept[0]) / 2 * factor, (width - kept[1]) / 2 * factor
    box = (max(0.0, left), max(0.0, top), image.width - 1 - left, image.height - 1 - top)
    ImageDraw.Draw(image).rectangle((box[0], box[1], max(box[0], box[2]), max(box[1], box[3])), outline=_KEPT_COLOUR)
    return np.asarray(image)


def measures(looks: Sequence[Look]) -> dict[str, list[float]]:
    """Returns by name, with its unit, one number for each clip (each caption for text tokens)."""
    videos = [one for one in looks if one.fitted[0] > 1]
    return {
        "tokens": [float(one.tokens) for one in looks],
        "frames, as encoded": [float(one.fitted[0]) for one in looks],
        "duration, s, as encoded": [one.fitted[0] / one.fps for one in videos],
        "used, % of the frames of the file": [100 * one.used for one in videos if one.used is not None],
        "frames per second": [one.fps for one in videos],
        "aspect ratio, width over height": [one.size[2] / one.size[1] for one in looks],
        "short side, px, native": [float(min(one.size[1:])) for one in looks],
        "scale": [one.scale for one in looks],
        "cropped, % of the picture": [100 * one.cut for one in looks],
        "text tokens of a caption": [float(tokens) for one in looks for tokens in one.text_tokens],
    }


def reasons(dropped: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    """Returns how many clips were left out for each reason, numbers in it apart, the commonest first."""
    return collections.Counter(re.sub(r"\d+(\.\d+)?", "#", reason) for _, reason in dropped).most_common()


def packing_of(looks: Sequence[Look], packing: PackingConfig, *, max_text_tokens: int, seed: int) -> dict[str, float]:
    """Returns how rows of these clips fill and balance: `fill`, `clips_per_row`, and the costliest row of a batch.

    Over the rows of an epoch, or of 16 batches where that is more; cost is the sum of squared tokens. Clips that fit
    no row are counted in `rejected`.
    """
    text = [min(tokens, max_text_tokens) for one in looks for tokens in one.text_tokens or (1,)]
    captions = np.cumsum([0, *(max(1, len(one.text_tokens)) for one in looks)])
    tokens_N = np.array([one.tokens for one in looks])
    lengths = Lengths(tokens_N=tokens_N, text_tokens_M=np.array(text), caption_start_N1=captions)
    pools = [Pool(ids_N=np.arange(len(looks)), share=1.0)]
    plan = RowPlan(lengths, pools, packing.budget(), seed=seed, window=packing.window, rows_per_batch=packing.rows)
    batches = max(16, round(tokens_N.sum() / packing.tokens / packing.rows))
    rows = [plan.row(number).samples_S for number in range(batches * packing.rows)]
    cost_RB = np.array([np.sum(tokens_N[samples_S] ** 2.0) for samples_S in rows]).reshape(batches, packing.rows)
    return {
        "fill": float(sum(tokens_N[samples_S].sum() for samples_S in rows) / (len(rows) * packing.tokens)),
        "clips_per_row": float(np.mean([len(samples_S) for samples_S in rows])),
        "costliest_row": float(np.mean(cost_RB.max(axis=1) / cost_RB.mean(axis=1))),
        "rejected": float(len(plan.rejected)),
    }
