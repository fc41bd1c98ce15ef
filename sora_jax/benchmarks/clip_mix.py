"""A fixed stream of clips of many sizes, and the ways in which trainers arrange such clips in batches.

Letters: B rows, L tokens of a row, S segments of a row, G noise levels of a row, K text tokens of a row, P patch width,
E text width.
"""

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from sora_jax.core import rng
from sora_jax.data.packing.plan import Budget, plan_window
from sora_jax.models.flops import NO_WORK, Work, work_of
from sora_jax.train.reporter import HostBatch
from sora_jax.video import shapes

# Token grids (time, rows, columns) of the mix, each as likely as the others: six images and six videos of 48 to 480
# tokens, spaced by factors of 1.1 to 1.3. So sizes are about log-uniform over a range of ten, their mean 0.41 of the
# largest.
CLIP_GRIDS: tuple[shapes.Size, ...] = (
    *((1, 6, 8), (1, 8, 8), (1, 8, 9), (1, 9, 10), (1, 10, 11), (1, 12, 12)),
    *((2, 8, 11), (3, 8, 9), (4, 8, 8), (5, 8, 8), (4, 8, 12), (5, 8, 12)),
)
# Of the stream whose clips are all alike.
EQUAL_GRID: shapes.Size = (4, 8, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipLayout:
    """What clips look like besides their grids.

    Attributes:
      patch_width: P.
      text_dim: E.
      text_tokens: Of every clip; all alike, so that no arrangement has to pad text.
      side_scale: Rows and columns of every grid are multiplied by it.
    """

    patch_width: int
    text_dim: int
    text_tokens: int
    side_scale: int

    def scaled(self, grid: shapes.Size) -> shapes.Size:
        """Returns `grid` at this scale."""
        return grid[0], grid[1] * self.side_scale, grid[2] * self.side_scale


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MadeUpClip:
    """One noisy clip as a step sees it: tokens and what to predict, both (L, P), text (K, E), and a noise level."""

    grid: shapes.Size
    tokens_LP: np.ndarray
    target_LP: np.ndarray
    text_KE: np.ndarray
    sigma: float

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return len(self.tokens_LP)


def draw_clips(count: int, layout: ClipLayout, *, grids: Sequence[shapes.Size] = CLIP_GRIDS) -> list[MadeUpClip]:
    """Returns the first `count` clips of the stream, their grids drawn alike often from `grids`; always the same."""
    generator = rng.generator(0, "clips of a mix")
    clips = []
    for choice in generator.integers(len(grids), size=count).tolist():
        grid = layout.scaled(grids[choice])
        shape = (shapes.count(grid), layout.patch_width)
        clips.append(
            MadeUpClip(
                grid=grid,
                tokens_LP=generator.standard_normal(shape, np.float32),
                target_LP=generator.standard_normal(shape, np.float32),
                text_KE=generator.standard_normal((layout.text_tokens, layout.text_dim), np.float32),
                sigma=float(generator.uniform()),
            )
        )
    return clips


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Arrangement:
    """A stream of clips in batches.

    A batch is a dict of arrays:
      tokens_BLP, target_BLP  float32  zero where padding
      levels_BG               float32  noise levels; G = 2 S, the second half (known tokens) is zero and unused
      level_BL                int32    index into G
      position_BL3            float32  (time, row, column)
      segment_BL              int32    1...S, 0 where padding
      text_BKE                float32
      text_segment_BK         int32
    """

    batches: tuple[HostBatch, ...]

    def work(self) -> Work:
        """Returns what the batches hold; padding counts nothing."""
        return sum((work_of(b["segment_BL"], b["text_segment_BK"]) for b in self.batches), NO_WORK)

    def fill(self) -> float:
        """Returns the share of all slots for tokens that holds one."""
        return self.work().tokens / sum(batch["segment_BL"].size for batch in self.batches)

    def shapes(self) -> list[HostBatch]:
        """Returns one batch of each shape."""
        return list({batch["tokens_BLP"].shape: batch for batch in self.batches}.values())


def packed(clips: Sequence[MadeUpClip], *, row_tokens: int, rows: int, short_tail: bool) -> Arrangement:
    """Returns rows of `row_tokens` planned as training plans them, `rows` to a batch.

    `short_tail` leaves the last batch shorter instead of filling it with empty rows.
    """
    shortest, text_tokens = min(clip.tokens for clip in clips), len(clips[0].text_KE)
    segments = row_tokens // shortest
    budget = Budget(tokens=row_tokens, text_tokens=segments * text_tokens, segments=segments)
    tokens_N = np.array([clip.tokens for clip in clips])
    plan = plan_window(tokens_N, np.full_like(tokens_N, text_tokens), budget, seed=0)
    assert not plan.rejected, plan.rejected
    members = [plan.row(row).tolist() for row in range(len(plan))]
    return Arrangement(
        batches=tuple(
            fill_rows(clips, part, length=row_tokens, slots=segments)
            for part in _parts(members, rows, short_tail=short_tail)
        )
    )


def padded_batches(clips: Sequence[MadeUpClip], *, batch_tokens: int, short_tail: bool) -> Arrangement:
    """Returns rows of one clip each, all as long as the longest clip, as many to a batch as its tokens allow."""
    longest = max(clip.tokens for clip in clips)
    members = [[number] for number in range(len(clips))]
    parts = _parts(members, max(1, batch_tokens // longest), short_tail=short_tail)
    return Arrangement(batches=tuple(fill_rows(clips, part, length=longest, slots=1) for part in parts))


def bucketed(clips: Sequence[MadeUpClip], *, batch_tokens: int, short_tail: bool) -> Arrangement:
    """Returns batches of clips of exactly one shape each, as many to a batch as its tokens allow, in mixed order."""
    buckets: dict[shapes.Size, list[list[int]]] = defaultdict(list)
    for number, clip in enumerate(clips):
        buckets[clip.grid].append([number])
    batches = []
    for grid, members in sorted(buckets.items()):
        length = math.prod(grid)
        for part in _parts(members, max(1, batch_tokens // length), short_tail=short_tail):
            batches.append(fill_rows(clips, part, length=length, slots=1))
    order = rng.generator(0, "order of buckets").permutation(len(batches))
    return Arrangement(batches=tuple(batches[number] for number in order))


def _parts(members: list[list[int]], size: int, *, short_tail: bool) -> Iterator[list[list[int]]]:
    """Yields `size` rows at a time; the last part is filled up with empty rows, or short."""
    for start in range(0, len(members), size):
        part = members[start : start + size]
        yield part if short_tail else part + [[] for _ in range(size - len(part))]


def fill_rows(clips: Sequence[MadeUpClip], members: Sequence[Sequence[int]], *, length: int, slots: int) -> HostBatch:
    """Returns the batch whose row r holds the clips `members[r]`, of L = `length` and S = `slots`."""
    rows, text_tokens = len(members), len(clips[0].text_KE)
    patch_width, text_dim = clips[0].tokens_LP.shape[1], clips[0].text_KE.shape[1]
    batch = {
        "tokens_BLP": np.zeros((rows, length, patch_width), np.float32),
        "target_BLP": np.zeros((rows, length, patch_width), np.float32),
        "levels_BG": np.zeros((rows, 2 * slots), np.float32),
        "level_BL": np.zeros((rows, length), np.int32),
        "position_BL3": np.zeros((rows, length, 3), np.float32),
        "segment_BL": np.zeros((rows, length), np.int32),
        "text_BKE": np.zeros((rows, slots * text_tokens, text_dim), np.float32),
        "text_segment_BK": np.zeros((rows, slots * text_tokens), np.int32),
    }
    for row, numbers in enumerate(members):
        ends = list(itertools.accumulate((clips[number].tokens for number in numbers), initial=0))
        for slot, number in enumerate(numbers):
            clip, here = clips[number], (row, slice(ends[slot], ends[slot + 1]))
            text = (row, slice(slot * text_tokens, (slot + 1) * text_tokens))
            batch["tokens_BLP"][here], batch["target_BLP"][here] = clip.tokens_LP, clip.target_LP
            batch["position_BL3"][here] = shapes.positions(clip.grid, 1.0)
            batch["segment_BL"][here], batch["level_BL"][here] = slot + 1, slot
            batch["levels_BG"][row, slot] = clip.sigma
            batch["text_BKE"][text], batch["text_segment_BK"][text] = clip.text_KE, slot + 1
    return batch
