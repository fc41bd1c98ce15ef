"""The endless numbered sequence of packed rows: global row number -> sample ids.

Letters: N samples, M captions, W draws of a window, U usable captions, B rows of a global batch.

Three steps, each a pure function of (lengths, budget, seed, mix):
  draw d       -> a sample: the endless sequence of shuffled epochs (`Draws`)
  window w     -> rows: the draws [w W, (w + 1) W) packed on their lengths (`packing.plan_window`)
  row number i -> slot i mod B of batch i div B, its rows ordered so that attention is balanced

Windows cut the endless sequence of draws wherever epochs end. So the end of an epoch leaves no half filled
rows behind, a set smaller than a window is packed together with its own next epoch, nothing is carried over
and no window depends on another. What is lost beyond what the lengths force is part of the last row of each
window: under one percent with some hundred rows in a window.

Nothing here depends on processes, threads or devices, so neither does the order of samples.
"""

import bisect
import dataclasses
import functools
import threading
from collections.abc import Sequence

import numpy as np

from sora_jax.core import rng
from sora_jax.core.errors import UserError
from sora_jax.data.packing import Budget, Rejected, WindowPlan, balance_order, find_rejected, plan_window


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Lengths:
    """All that planning knows about N prepared samples: `tokens_N` of each, `text_tokens_M` of each caption.

    Integers >= 1; sample i has the captions `caption_start_N1[i]` up to `caption_start_N1[i + 1]`, at least
    one. `weights_M` > 0 says how often each is drawn next to the others of its sample; None: all alike.
    """

    tokens_N: np.ndarray
    text_tokens_M: np.ndarray
    caption_start_N1: np.ndarray
    weights_M: np.ndarray | None = None

    def __post_init__(self):
        assert self.weights_M is None or np.all(self.weights_M > 0), "a caption without weight"
        assert len(self.caption_start_N1) == len(self.tokens_N) + 1
        assert self.caption_start_N1[-1] == len(self.text_tokens_M)
        assert np.all(np.diff(self.caption_start_N1) >= 1), "a sample without any caption"

    def shortest_text_N(self) -> np.ndarray:
        """Returns the number of text tokens of each sample's shortest caption."""
        return np.minimum.reduceat(self.text_tokens_M, self.caption_start_N1[:-1])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Samples that are drawn from alike: their ids, and the pool's share of all draws relative to others."""

    ids_N: np.ndarray
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One row: int64 `samples_S` and the caption chosen for each (its number within the sample).

    `window` is the window it was planned in, `epoch` the one in which that window begins.
    """

    samples_S: np.ndarray
    captions_S: np.ndarray
    window: int
    epoch: int


class Draws:
    """The endless sequence of draws: an epoch has one for each sample, dealt to the pools by share.

    Each pool goes through its samples in an order shuffled anew each time round, so at any moment no sample
    of a pool was drawn twice more than another; a single pool has every sample exactly once in each epoch.
    `per_epoch` is the number of draws in an epoch (rounding gives every pool at least one).
    """

    def __init__(self, pools: Sequence[Pool], *, seed: int):
        assert all(len(pool.ids_N) and pool.share > 0 for pool in pools), "a pool that cannot be drawn from"
        samples, shares = sum(len(pool.ids_N) for pool in pools), sum(pool.share for pool in pools)
        self._pools = tuple(pools)
        self._draws = [max(1, round(samples * pool.share / shares)) for pool in pools]
        self._seed = seed
        self.per_epoch = sum(self._draws)
        # Two epochs, because a window may lie across the border.
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffle_epoch)

    def take(self, start: int, stop: int) -> np.ndarray:
        """Returns int64 sample ids of the draws `start` up to `stop` > `start`, which may span epochs."""
        parts = []
        for epoch in range(start // self.per_epoch, (stop - 1) // self.per_epoch + 1):
            offset = epoch * self.per_epoch
            parts.append(self._epoch(epoch)[max(start - offset, 0) : stop - offset])
        return np.concatenate(parts)

    def _shuffle_epoch(self, epoch: int) -> np.ndarray:
        parts = [self._part(number, epoch) for number in range(len(self._pools))]
        if len(parts) == 1:
            return parts[0]
        return rng.generator(self._seed, "mix", epoch).permutation(np.concatenate(parts))

    def _part(self, number: int, epoch: int) -> np.ndarray:
        """Returns what an epoch draws from one pool: the next stretch of the pool's shuffled rounds."""
        ids_N, draws = self._pools[number].ids_N, self._draws[number]
        start, stop = epoch * draws, (epoch + 1) * draws
        first = start // len(ids_N)
        rounds = [
            rng.generator(self._seed, "draws", number, turn).permutation(ids_N)
            for turn in range(first, (stop - 1) // len(ids_N) + 1)
        ]
        offset = first * len(ids_N)
        return np.concatenate(rounds)[start - offset : stop - offset]


class RowPlan:
    """Random access to the endless sequence of rows; `rejected` names the samples that fit no row.

    Where a window begins depends on how many rows all earlier ones have, so the first access to a row plans
    every window before it (the cost of a resume: lengths only, no data is read, some 10^5 to 10^6 samples a
    second) and remembers one integer for each; the last few windows and batches are kept whole. Thread safe.

    Each draw chooses one of the sample's captions that fit a row, by their weights, before the window is
    planned, so that text is packed at the length it really has.

    Raises `UserError` when no sample of a pool fits a row.
    """

    def __init__(
        self,
        lengths: Lengths,
        pools: Sequence[Pool],
        budget: Budget,
        *,
        seed: int,
        window: int,
        rows_per_batch: int,
    ):
        self._lengths = lengths
        self._budget = budget
        self._seed = seed
        self._window_draws = window
        self._rows_per_batch = rows_per_batch
        unfit = find_rejected(lengths.tokens_N, lengths.shortest_text_N(), budget)
        drawn = set(np.intersect1d([item.sample for item in unfit], _ids(pools)).tolist())
        self.rejected = tuple(item for item in unfit if item.sample in drawn)
        self._draws = Draws([_without(pool, self.rejected) for pool in pools], seed=seed)
        usable_M = lengths.text_tokens_M <= budget.text_tokens
        before_N1 = np.concatenate([[0], np.cumsum(usable_M)])[lengths.caption_start_N1]
        self._usable_U = np.flatnonzero(usable_M)
        weights_U = np.ones(len(self._usable_U)) if lengths.weights_M is None else lengths.weights_M[usable_M]
        self._weight_before_U1 = np.concatenate([[0.0], np.cumsum(weights_U)])
        self._usable_start_N, self._usable_count_N = before_N1[:-1], np.diff(before_N1)
        self._first_rows = [0]
        self._lock = threading.Lock()
        self._window = functools.lru_cache(maxsize=4)(self._plan_window)
        self._batch = functools.lru_cache(maxsize=4)(self._plan_batch)

    def row(self, number: int) -> Row:
        """Returns row `number` >= 0 of the sequence."""
        batch, slot = divmod(number, self._rows_per_batch)
        with self._lock:
            return self._batch(batch)[slot]

    def _plan_batch(self, batch: int) -> list[Row]:
        start = batch * self._rows_per_batch
        rows = [self._locate(number) for number in range(start, start + self._rows_per_batch)]
        tokens = [self._lengths.tokens_N[row.samples_S].astype(float) for row in rows]
        cost_B = np.array([np.sum(tokens_S**2) for tokens_S in tokens])
        return [rows[slot] for slot in balance_order(cost_B)]

    def _locate(self, number: int) -> Row:
        while self._first_rows[-1] <= number:
            _, _, plan = self._window(len(self._first_rows) - 1)
            self._first_rows.append(self._first_rows[-1] + len(plan))
        window = bisect.bisect_right(self._first_rows, number) - 1
        samples_W, captions_W, plan = self._window(window)
        members_S = plan.row(number - self._first_rows[window])
        return Row(
            samples_S=samples_W[members_S],
            captions_S=captions_W[members_S],
            window=window,
            epoch=window * self._window_draws // self._draws.per_epoch,
        )

    def _plan_window(self, window: int) -> tuple[np.ndarray, np.ndarray, WindowPlan]:
        start = window * self._window_draws
        samples_W = self._draws.take(start, start + self._window_draws)
        chance_W = rng.generator(self._seed, "captions", window).random(len(samples_W))
        captions_W = self._choose_captions(samples_W, chance_W)
        plan = plan_window(
            self._lengths.tokens_N[samples_W],
            self._lengths.text_tokens_M[captions_W],
            self._budget,
            seed=self._seed,
            window=window,
        )
        assert not plan.rejected, plan.rejected
        return samples_W, captions_W - self._lengths.caption_start_N1[samples_W], plan

    def _choose_captions(self, samples_W: np.ndarray, chance_W: np.ndarray) -> np.ndarray:
        """Returns the caption, among all M, on which each chance in [0, 1) falls."""
        first_W = self._usable_start_N[samples_W]
        end_W = first_W + self._usable_count_N[samples_W]
        low_W, high_W = self._weight_before_U1[first_W], self._weight_before_U1[end_W]
        found_W = np.searchsorted(self._weight_before_U1, low_W + chance_W * (high_W - low_W), side="right") - 1
        # The sum may round up to the next sample's first caption.
        return self._usable_U[np.clip(found_W, first_W, end_W - 1)]


def _ids(pools: Sequence[Pool]) -> np.ndarray:
    return np.concatenate([pool.ids_N for pool in pools])


def _without(pool: Pool, rejected: Sequence[Rejected]) -> Pool:
    """Returns the pool without the rejected samples; raises `UserError` when none is left."""
    kept_N = np.setdiff1d(pool.ids_N, [item.sample for item in rejected], assume_unique=True)
    if not len(kept_N):
        raise UserError(
            f"none of {len(pool.ids_N)} samples fits a row; the first: {rejected[0].reason}: "
            "raise packing.tokens or packing.text_tokens, or prepare shorter clips"
        )
    return Pool(ids_N=kept_N, share=pool.share)
