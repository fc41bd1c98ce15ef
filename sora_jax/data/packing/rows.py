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
from typing import Any, NamedTuple

import numpy as np

from sora_jax.core import rng
from sora_jax.core.errors import UserError
from sora_jax.data.packing.context import ContextMix
from sora_jax.data.packing.plan import Budget, Rejected, WindowPlan, balance_order, find_rejected, plan_window
from sora_jax.data.packing.shuffle import shuffle


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Lengths:
    """All that planning knows about N prepared samples: `tokens_N` of each, `text_tokens_M` of each caption.

    Integers >= 1; sample i has the captions `caption_start_N1[i]` up to `caption_start_N1[i + 1]`, at least
    one. `context_NX` are the tokens of clips beside, by kinds of the mix of context, 0 where a sample has none; None:
    there are none. `weights_M` > 0 says how often each is drawn next to the others of its sample; None: all alike.
    `alone_M` says which are told without the clip, as text alone, in a row that gives them one token; None: none.
    """

    tokens_N: np.ndarray
    text_tokens_M: np.ndarray
    caption_start_N1: np.ndarray
    weights_M: np.ndarray | None = None
    context_NX: np.ndarray | None = None
    alone_M: np.ndarray | None = None

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
class PlannedRow:
    """One row: int64 `samples_S`, the caption chosen for each (its number within the sample), `tokens_S` that it holds.

    A sample of which it holds fewer tokens than there are loses the others to token drop: `choose_tokens` says which,
    by the number of the draw, `draws_S`. Beside them it has clips of the kinds in `context_SX` (bool), of `beside_S`
    tokens. `window` is the window it was planned in, `epoch` the one in which that
    window begins.
    """

    samples_S: np.ndarray
    captions_S: np.ndarray
    tokens_S: np.ndarray
    draws_S: np.ndarray
    context_SX: np.ndarray
    beside_S: np.ndarray
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

    def take(self, start: int, stop: int) -> np.ndarray:
        """Returns int64 sample ids of the draws `start` up to `stop` > `start`, which may span epochs."""
        epochs_W, places_W = np.divmod(np.arange(start, stop), self.per_epoch)
        samples_W = np.empty(stop - start, np.int64)
        for epoch in range(epochs_W[0], epochs_W[-1] + 1):
            here = epochs_W == epoch
            samples_W[here] = self._take_of_epoch(places_W[here], epoch)
        return samples_W

    def _take_of_epoch(self, places_W: np.ndarray, epoch: int) -> np.ndarray:
        """Returns the samples at places of an epoch: the pools' draws, shuffled together."""
        if len(self._pools) > 1:
            places_W = shuffle(places_W, self.per_epoch, seed=self._seed, name="mix", turn=epoch)
        samples_W, first = np.empty(len(places_W), np.int64), 0
        for number, draws in enumerate(self._draws):
            here = (places_W >= first) & (places_W < first + draws)
            samples_W[here] = self._take_of_pool(number, places_W[here] - first + epoch * draws)
            first += draws
        return samples_W

    def _take_of_pool(self, number: int, draws_W: np.ndarray) -> np.ndarray:
        """Returns draws of one pool, counted over all epochs: it goes round and round, in a new order each time."""
        ids_N = self._pools[number].ids_N
        rounds_W, places_W = np.divmod(draws_W, len(ids_N))
        samples_W = np.empty(len(draws_W), np.int64)
        for turn in np.unique(rounds_W).tolist():
            here = rounds_W == turn
            order_W = shuffle(places_W[here], len(ids_N), seed=self._seed, name=f"draws of {number}", turn=turn)
            samples_W[here] = ids_N[order_W]
        return samples_W


class _Window(NamedTuple):
    """The draws of a window: sample, caption (its number within the sample), tokens that stay, what is beside; rows."""

    samples_W: np.ndarray
    captions_W: np.ndarray
    tokens_W: np.ndarray
    context_WX: np.ndarray
    beside_W: np.ndarray
    plan: WindowPlan


class RowPlan:
    """Random access to the endless sequence of rows; `rejected` names the samples that fit no row.

    Where a window begins depends on how many rows all earlier ones have, so the first access to a row plans
    every window before it (the cost of a resume: lengths only, no data is read, some 10^5 to 10^6 samples a
    second) and remembers one integer for each; the last few windows and batches are kept whole. Thread safe.

    Each draw chooses one of the sample's captions that fit a row, by their weights, before the window is
    planned, so that text is packed at the length it really has. In the same way each draw loses a share of its
    tokens, uniform in `token_drop` (least, largest), to the nearest token; at least one stays. A sample must
    fit a row whole all the same. `context` says which clips each draw has beside it: a sample that lacks one, or
    fits no row with them, goes without.

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
        token_drop: tuple[float, float] = (0.0, 0.0),
        context: ContextMix | None = None,
    ):
        self._lengths = lengths
        self._context = context
        self._budget = budget
        self._seed = seed
        self._window_draws = window
        self._rows_per_batch = rows_per_batch
        self._token_drop = token_drop
        kept, rejected = _fitting(pools, lengths, budget)
        self.rejected = rejected
        self._draws = Draws(kept, seed=seed)
        self._first_rows = [0]
        self._remember()

    def _remember(self) -> None:
        self._lock = threading.Lock()
        self._window = functools.lru_cache(maxsize=4)(self._plan_window)
        self._batch = functools.lru_cache(maxsize=4)(self._plan_batch)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the plan without its lock and memory: it is pickled for worker processes."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_window", "_batch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()

    def row(self, number: int) -> PlannedRow:
        """Returns row `number` >= 0 of the sequence."""
        batch, slot = divmod(number, self._rows_per_batch)
        with self._lock:
            return self._batch(batch)[slot]

    def _plan_batch(self, batch: int) -> list[PlannedRow]:
        start = batch * self._rows_per_batch
        rows = [self._locate(number) for number in range(start, start + self._rows_per_batch)]
        cost_B = np.array([np.sum((row.tokens_S + row.beside_S).astype(float) ** 2) for row in rows])
        return [rows[slot] for slot in balance_order(cost_B)]

    def _locate(self, number: int) -> PlannedRow:
        while self._first_rows[-1] <= number:
            self._first_rows.append(self._first_rows[-1] + len(self._window(len(self._first_rows) - 1).plan))
        window = bisect.bisect_right(self._first_rows, number) - 1
        drawn, start = self._window(window), window * self._window_draws
        members_S = drawn.plan.row(number - self._first_rows[window])
        return PlannedRow(
            samples_S=drawn.samples_W[members_S],
            captions_S=drawn.captions_W[members_S],
            tokens_S=drawn.tokens_W[members_S],
            draws_S=start + members_S,
            context_SX=drawn.context_WX[members_S],
            beside_S=drawn.beside_W[members_S],
            window=window,
            epoch=start // self._draws.per_epoch,
        )

    def _plan_window(self, window: int) -> _Window:
        start = window * self._window_draws
        samples_W = self._draws.take(start, start + self._window_draws)
        chance_W = rng.generator(self._seed, "captions", window).random(len(samples_W))
        captions_W = self._choose_captions(samples_W, chance_W)
        tokens_W = self._lengths.tokens_N[samples_W]
        share_W = rng.generator(self._seed, "token drop", window).uniform(*self._token_drop, len(tokens_W))
        tokens_W = np.maximum(1, tokens_W - np.rint(share_W * tokens_W).astype(np.int64))
        if self._lengths.alone_M is not None:
            tokens_W[self._lengths.alone_M[captions_W]] = 1
        text_W = self._lengths.text_tokens_M[captions_W]
        context_WX, beside_W = self._draw_context(samples_W, tokens_W, window)
        plan = plan_window(tokens_W + beside_W, text_W, self._budget, seed=self._seed, window=window)
        assert not plan.rejected, plan.rejected
        captions_W -= self._lengths.caption_start_N1[samples_W]
        return _Window(samples_W, captions_W, tokens_W, context_WX, beside_W, plan)

    def _draw_context(self, samples_W: np.ndarray, tokens_W: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (which kinds of clips each draw has beside it, their tokens)."""
        mix, context_NX = self._context, self._lengths.context_NX
        if mix is None or context_NX is None:
            return np.zeros((len(samples_W), 0), bool), np.zeros(len(samples_W), np.int64)
        there_WX = context_NX[samples_W].astype(np.int64)
        drawn_WX = mix.draw(len(samples_W), rng.generator(self._seed, "context", window)) & (there_WX > 0)
        total_W = tokens_W + np.sum(there_WX * drawn_WX, axis=1)
        drawn_WX &= (total_W <= self._budget.tokens)[:, None]
        return drawn_WX, np.sum(there_WX * drawn_WX, axis=1)

    def _choose_captions(self, samples_W: np.ndarray, chance_W: np.ndarray) -> np.ndarray:
        """Returns the caption, among all M, on which each chance in [0, 1) falls; those that fit no row have none."""
        starts_W = self._lengths.caption_start_N1[samples_W]
        counts_W = self._lengths.caption_start_N1[samples_W + 1] - starts_W
        draw_U = np.repeat(np.arange(len(samples_W)), counts_W)
        caption_U = np.arange(len(draw_U)) - np.repeat(np.cumsum(counts_W) - counts_W, counts_W) + starts_W[draw_U]
        usable_U = self._lengths.text_tokens_M[caption_U] <= self._budget.text_tokens
        draw_U, caption_U = draw_U[usable_U], caption_U[usable_U]
        weights_U = np.ones(len(draw_U)) if self._lengths.weights_M is None else self._lengths.weights_M[caption_U]
        # Draw i has the stretch [i, i + 1) of one line, divided among its captions.
        reached_U = np.cumsum(weights_U / np.bincount(draw_U, weights_U)[draw_U])
        found_W = np.searchsorted(reached_U, np.arange(len(samples_W)) + chance_W, side="right")
        # Sums are rounded, and a border between draws is one also then.
        end_W = np.cumsum(np.bincount(draw_U))
        return caption_U[np.clip(found_W, end_W - np.bincount(draw_U), end_W - 1)]


def choose_tokens(count: int, kept: int, *, seed: int, draw: int) -> np.ndarray | slice:
    """Returns the ascending index of the `kept` of a clip's `count` tokens that stay; all choices are alike likely."""
    if kept == count:
        return slice(None)
    return np.sort(rng.generator(seed, "kept tokens", draw).choice(count, kept, replace=False, shuffle=False))


def _fitting(pools: Sequence[Pool], lengths: Lengths, budget: Budget) -> tuple[list[Pool], tuple[Rejected, ...]]:
    """Returns the pools without the samples that fit no row, and those; raises `UserError` when a pool has no other."""
    text_N, kept, found = lengths.shortest_text_N(), [], {}
    for pool in pools:
        unfit_N = (lengths.tokens_N[pool.ids_N] > budget.tokens) | (text_N[pool.ids_N] > budget.text_tokens)
        ids = pool.ids_N[unfit_N]
        rejected = find_rejected(lengths.tokens_N[ids], text_N[ids], budget)
        found |= {int(ids[item.sample]): item.reason for item in rejected}
        if len(ids) == len(pool.ids_N):
            raise UserError(
                f"none of {len(pool.ids_N)} samples fits a row; the first: {rejected[0].reason}: "
                "raise packing.tokens or packing.text_tokens, or prepare shorter clips"
            )
        kept.append(dataclasses.replace(pool, ids_N=pool.ids_N[~unfit_N]) if len(ids) else pool)
    return kept, tuple(Rejected(sample=sample, reason=found[sample]) for sample in sorted(found))
