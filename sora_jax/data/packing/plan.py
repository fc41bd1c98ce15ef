"""Planned packing: which samples share a row, decided from their lengths alone.

Letters: N samples, R rows of a window, B rows of a global batch, L tokens of a row.

`plan_window` assigns a window's samples to rows in three capacities; `balance_order` orders the rows of a
batch so that attention costs every device the same. Both are pure functions on the host; `data/packing/rows.py` makes
of them an endless numbered sequence of rows.
"""

import bisect
import dataclasses
import functools
import itertools
import math

import numpy as np

from sora_jax.core import rng
from sora_jax.core.errors import UserError

# The share of a window's tokens that is spread over all rows before the rest is fitted; tried in this order
# until the rows are within 1/200 of the fewest conceivable. Much spreading suits wide mixtures and tight text
# budgets, little suits few distinct lengths.
_SPREADS = (0.8, 0.5, 0.9)
_GOOD_ENOUGH = 200
# How many different gaps are looked at for one sample, and how many of the smallest lengths count as fillers.
_CANDIDATES = 4
_FILLERS = 16
_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What one row holds at most: `tokens` of latents, `text_tokens` of captions, `segments` (clips)."""

    tokens: int
    text_tokens: int
    segments: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise UserError(f"a row must hold at least 1 of {name}, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejected:
    """A sample that fits no row: its index and a sentence with both numbers."""

    sample: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WindowPlan:
    """The rows of a window: row r holds the samples `members_N[starts_R1[r] : starts_R1[r + 1]]`.

    `members_N` (int64) index the arrays given to `plan_window`; `rejected` are those in no row.
    """

    members_N: np.ndarray
    starts_R1: np.ndarray
    rejected: tuple[Rejected, ...]

    def __len__(self) -> int:
        return len(self.starts_R1) - 1

    def row(self, number: int) -> np.ndarray:
        """Returns the samples of row `number` of this window, the longest first."""
        return self.members_N[self.starts_R1[number] : self.starts_R1[number + 1]]


def find_rejected(tokens_N: np.ndarray, text_N: np.ndarray, budget: Budget) -> tuple[Rejected, ...]:
    """Returns the samples that alone exceed a row, each with its reason; `text_N` as in `plan_window`."""
    found = []
    for sample in np.flatnonzero((tokens_N > budget.tokens) | (text_N > budget.text_tokens)).tolist():
        if tokens_N[sample] > budget.tokens:
            reason = f"{tokens_N[sample]} tokens do not fit a row of {budget.tokens} tokens"
        else:
            reason = f"{text_N[sample]} text tokens do not fit a row of {budget.text_tokens} text tokens"
        found.append(Rejected(sample=sample, reason=reason))
    return tuple(found)


def plan_window(tokens_N: np.ndarray, text_N: np.ndarray, budget: Budget, *, seed: int, window: int = 0) -> WindowPlan:
    """Returns rows that hold every sample exactly once, except for the rejected; a function of its arguments.

    `tokens_N` and `text_N` are integers >= 1. Vector bin packing, longest first, ties and the order of rows
    by `seed` and `window`. Best fit alone leaves the short samples for the end, in rows full of segments but
    not of tokens, and rows of few long samples beside rows of many short ones. So first the longest samples
    are spread, each into the row with most room, over the fewest rows that could hold the window (worst fit
    decreasing: Krause, Shen and Schwetman 1975, for bins of limited count); then the others go where they fit
    best. This also evens out the attention cost (sum of n^2) of the rows. "Best" looks one step ahead: the
    gap that stays is judged by how much of it sums of the shortest lengths can fill.
    """
    assert tokens_N.shape == text_N.shape, (tokens_N.shape, text_N.shape)
    generator = rng.generator(seed, "rows", window)
    rejected = find_rejected(tokens_N, text_N, budget)
    order_N = np.delete(np.arange(len(tokens_N)), [item.sample for item in rejected])
    order_N = generator.permutation(order_N)
    order_N = order_N[np.argsort(-tokens_N[order_N], kind="stable")]
    rows = _fewest_rows(tokens_N[order_N], text_N[order_N], budget)
    shuffled = [rows[row] for row in generator.permutation(len(rows))]
    starts = itertools.accumulate(map(len, shuffled), initial=0)
    members = np.fromiter(itertools.chain.from_iterable(shuffled), np.int64, len(order_N))
    return WindowPlan(members_N=order_N[members], starts_R1=np.fromiter(starts, np.int64), rejected=rejected)


def _fewest_rows(tokens_N: np.ndarray, text_N: np.ndarray, budget: Budget) -> list[list[int]]:
    """Returns the rows (positions in the arguments) of the best attempt; `tokens_N` is in falling order."""
    if not len(tokens_N):
        return []
    bound = fewest_conceivable_rows(tokens_N, text_N, budget)
    sizes = tuple(np.unique(tokens_N)[:_FILLERS].tolist())
    samples = list(zip(tokens_N.tolist(), text_N.tolist(), strict=True))
    best: list[list[int]] = []
    for spread in _SPREADS:
        placed = np.searchsorted(np.cumsum(tokens_N), spread * tokens_N.sum())
        rows = _Rows(budget, count=bound, sizes=sizes, shortest_text=int(text_N.min()))
        for sample, (tokens, text) in enumerate(samples):
            spot = rows.roomiest(tokens, text) if sample < placed else rows.tightest(tokens, text)
            rows.put(sample, tokens, text, spot)
        filled = [row for row in rows.members if row]
        if not best or len(filled) < len(best):
            best = filled
        if len(best) <= bound + bound // _GOOD_ENOUGH:
            break
    return best


def fewest_conceivable_rows(tokens_N: np.ndarray, text_N: np.ndarray, budget: Budget) -> int:
    """Returns the number of rows that no packing can undercut: the tightest capacity, filled entirely."""
    return max(
        math.ceil(tokens_N.sum() / budget.tokens),
        math.ceil(text_N.sum() / budget.text_tokens),
        math.ceil(len(tokens_N) / budget.segments),
    )


class _Rows:
    """Rows being filled; the open ones are one sorted list of integers (free tokens, row number)."""

    def __init__(self, budget: Budget, *, count: int, sizes: tuple[int, ...], shortest_text: int):
        self._budget = budget
        self._shortest_text = shortest_text
        self._sizes = sizes
        self._waste = _unfillable(sizes, budget.tokens)
        self._tolerated = budget.tokens >> 10
        self.members: list[list[int]] = [[] for _ in range(count)]
        self._text_free = [budget.text_tokens] * count
        self._open = [budget.tokens << _ROW_BITS | row for row in range(count)]

    def roomiest(self, tokens: int, text: int) -> int | None:
        """Returns where in the open list the row with most free tokens is that takes the sample, or None."""
        spot = len(self._open) - 1
        while spot >= 0 and self._open[spot] >> _ROW_BITS >= tokens:
            if self._text_free[self._open[spot] & _ROW_MASK] >= text:
                return spot
            spot -= 1
        return None

    def tightest(self, tokens: int, text: int) -> int | None:
        """Returns where the row is whose remaining gap is the most fillable of the few smallest, or None."""
        waste = self._waste[min(bisect.bisect_left(self._sizes, tokens), len(self._sizes) - 1)]
        spot = bisect.bisect_left(self._open, tokens << _ROW_BITS)
        best, least, seen = None, self._budget.tokens + 1, 0
        while spot < len(self._open) and seen < _CANDIDATES:
            free = self._open[spot] >> _ROW_BITS
            if self._text_free[self._open[spot] & _ROW_MASK] < text:
                spot += 1
                continue
            if waste[free - tokens] < least:
                best, least = spot, waste[free - tokens]
            if least <= self._tolerated:
                break
            seen += 1
            spot = bisect.bisect_left(self._open, (free + 1) << _ROW_BITS, spot)
        return best

    def put(self, sample: int, tokens: int, text: int, spot: int | None) -> None:
        """Puts the sample into the open row at `spot`, or into a new row."""
        if spot is None:
            row, free = len(self.members), self._budget.tokens
            self.members.append([])
            self._text_free.append(self._budget.text_tokens)
        else:
            entry = self._open.pop(spot)
            row, free = entry & _ROW_MASK, entry >> _ROW_BITS
        self.members[row].append(sample)
        self._text_free[row] -= text
        free -= tokens
        takes_more = free >= self._sizes[0] and self._text_free[row] >= self._shortest_text
        if takes_more and len(self.members[row]) < self._budget.segments:
            bisect.insort(self._open, free << _ROW_BITS | row)


@functools.lru_cache(maxsize=8)
def _unfillable(sizes: tuple[int, ...], tokens: int) -> list[memoryview]:
    """Returns for each j a table: entry f is what stays of a gap f when filled with sums of `sizes[: j + 1]`.

    `sizes` ascend, and each may be used any number of times. The set of sums is the bits of one integer.
    """
    sums, mask, tables = 1, (1 << tokens + 1) - 1, []
    gap_L = np.arange(tokens + 1, dtype=np.int32)
    for size in sizes:
        while size <= tokens:
            sums |= (sums << size) & mask
            size *= 2
        packed = np.frombuffer(sums.to_bytes(tokens // 8 + 1, "little"), np.uint8)
        reached_L = np.unpackbits(packed, bitorder="little")[: tokens + 1].astype(bool)
        tables.append((gap_L - np.maximum.accumulate(np.where(reached_L, gap_L, 0))).data)
    return tables


def balance_order(cost_B: np.ndarray) -> np.ndarray:
    """Returns an order of B rows in which equal contiguous parts have nearly the same sum of `cost_B`.

    It holds for every number of parts at once, so the order need not know the mesh: each device's part of the
    batch costs about the same, whether 2 or 64 devices share it. Rows are dealt to as many parts as the
    greatest prime factor of their number says, the costliest first, each to the lightest part that has room
    (Graham 1969, here with equal counts); then each part is ordered in the same way. Nothing can help a part
    of a single row.
    """
    return np.array(_balanced(list(range(len(cost_B))), cost_B.tolist()), np.int64)


def _balanced(rows: list[int], cost: list[float]) -> list[int]:
    if len(rows) < 2:
        return rows
    # The greatest factor first: halves of thirds cut well in halves, thirds of halves do not in thirds.
    parts = max(n for n in range(2, len(rows) + 1) if len(rows) % n == 0 and _is_prime(n))
    shares: list[list[int]] = [[] for _ in range(parts)]
    totals = [0.0] * parts
    for row in sorted(rows, key=lambda row: -cost[row]):
        open_shares = (n for n in range(parts) if len(shares[n]) < len(rows) // parts)
        lightest = min(open_shares, key=totals.__getitem__)
        shares[lightest].append(row)
        totals[lightest] += cost[row]
    return [row for share in shares for row in _balanced(share, cost)]


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
