"""Packs from prepared samples: rows by number, batches from any row on, the fingerprint of their order.

The arrays are those of `data/packing/packs.py`. Letters: B rows, L tokens of a row, S segments of a row, N samples,
G collections.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import grain
import numpy as np

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.packing.context import ContextMix, Lacking
from sora_jax.data.packing.expansion_pairs import ExpansionPairs, put_pair
from sora_jax.data.packing.packs import ALL_TOKENS, HostPack, PackLayout, Row
from sora_jax.data.packing.plan import Budget
from sora_jax.data.packing.pools import make_pools
from sora_jax.data.packing.rows import Lengths, RowPlan, choose_tokens
from sora_jax.data.shards.files import EMPTY_TEXT_FILE
from sora_jax.data.shards.prepared import Prepared, PreparedSet
from sora_jax.data.tokens import Text, Tokenizer
from sora_jax.video import shapes
from sora_jax.video.patches import patchify
from sora_jax.video.shown import Shown, ShownConfig, join, shown_frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """How samples are packed; all at least 1.

    A row holds at most `tokens` latent tokens, `text_tokens` caption tokens and `segments` clips. Too few
    segments for rows full of the smallest clips leave tokens unused: `tokens` over the tokens of the smallest
    clip is always enough. `rows` make a global batch; `window` samples are packed together: some hundred
    rows' worth fills best.
    """

    tokens: int
    text_tokens: int
    segments: int
    rows: int
    window: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise UserError(f"packing.{name} must be at least 1, got {value}")

    def budget(self) -> Budget:
        """Returns the three capacities of a row."""
        return Budget(tokens=self.tokens, text_tokens=self.text_tokens, segments=self.segments)


class RowDataset:
    """The packed rows of a prepared set by number, without end; a grain source of single rows.

    `plan` says which samples each row holds, `plan.rejected` which samples fit none. `patch` is (pt, ph, pw);
    `time_rate` is in time positions per second; `mix` and `weights_G`, of the directories of `prepared`, are those of
    `make_pools`, `token_drop` is that of `RowPlan`; `tokenizer` is the one that `prepared` was made
    with, `shown` how the model is shown frames, `pairs` the texts that are drawn beside clips; `fps` is that of
    `PackLayout`. Thread safe.

    Raises `UserError` when a latent is not divisible by the patch, or the mix cannot be drawn, `DataError` when the
    empty text is not stored with the others.
    """

    def __init__(
        self,
        prepared: PreparedSet,
        packing: PackingConfig,
        *,
        patch: shapes.Size,
        time_rate: float,
        tokenizer: Tokenizer,
        seed: int,
        mix: Mapping[str, float] | None = None,
        weights_G: Sequence[float] | None = None,
        token_drop: tuple[float, float] = (0.0, 0.0),
        shown: ShownConfig | None = None,
        context: ContextMix | None = None,
        pairs: ExpansionPairs | None = None,
        fps: float | None = None,
    ):
        _check_empty_text(prepared, tokenizer)
        self._prepared, self._packing = prepared, packing
        self._layout = PackLayout(
            budget=packing.budget(),
            patch=patch,
            channels=prepared.header["channels"],
            temporal_stride=prepared.header["strides"][0],
            time_rate=time_rate,
            tokenizer=tokenizer,
            shown=shown,
            parts=0 if context is None else context.parts,
            prompted=pairs is not None,
            fps=fps,
        )
        self._pairs = pairs
        self._context, self._seed = context, seed
        self._mix = None if mix is None else {**mix, **({"collections": list(weights_G)} if weights_G else {})}
        self._token_drop = token_drop
        lengths = _lengths(prepared, context, patch)
        lengths = lengths if pairs is None else pairs.lengths(lengths)
        pools = make_pools(prepared.grid_N3, mix, collection_N=prepared.directory_N, weights_G=weights_G)
        self.plan = RowPlan(
            lengths,
            pools,
            packing.budget(),
            seed=seed,
            window=packing.window,
            rows_per_batch=packing.rows,
            token_drop=token_drop,
            context=context,
        )

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> HostPack:
        """Returns row `number` >= 0: the arrays of a pack without their axis B."""
        planned = self.plan.row(number)
        row = self._layout.row()
        if self._prepared.empty_text is not None:
            row.put_empty(self._prepared.empty_text)
        patch = self._layout.patch
        kinds = () if self._context is None else self._context.kinds
        columns = (planned.samples_S, planned.captions_S, planned.tokens_S, planned.draws_S, planned.context_SX)
        for index, caption, kept, draw, given in zip(*(column_S.tolist() for column_S in columns), strict=True):
            sample = self._prepared[index]
            if caption >= (stored := len(sample.captions)):
                put_pair(row, index, sample, caption - stored, seed=self._seed, draw=draw)
                continue
            count = shapes.count(shapes.token_grid(sample.latent_THWC.shape[:3], patch))
            chosen = choose_tokens(count, kept, seed=self._seed, draw=draw)
            beside = [kind for kind, is_given in zip(kinds, given, strict=True) if is_given]
            put_sample(row, index, sample, caption, kept=chosen, beside=beside)
        return row.arrays

    def names(self, number: int) -> list[str]:
        """Returns what the samples of row `number` are called."""
        return [self._prepared[index].source_id for index in self.plan.row(number).samples_S.tolist()]

    def left_out(self) -> dict[str, str]:
        """Returns source id -> reason of the samples that fit no row."""
        return {self._prepared[one.sample].source_id: one.reason for one in self.plan.rejected}

    def without_context(self) -> Lacking | None:
        """Returns how many samples go without what may be beside them; None where nothing is."""
        if self._context is None:
            return None
        tokens_N = np.prod(self._prepared.grid_N3 // self._layout.patch, axis=1)
        context_NX = _context_tokens(self._prepared, self._context, self._layout.patch)
        return self._context.lacking(context_NX, tokens_N, room=self._packing.tokens)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what the order of rows depends on, fit for JSON; with a row number it is all state."""
        return {
            "seed": self._seed,
            "data": self._prepared.fingerprint(),
            "patch": list(self._layout.patch),
            "mix": self._mix,
            "token_drop": list(self._token_drop),
            **({} if self._context is None else {"context": dataclasses.asdict(self._context)}),
            **({} if self._pairs is None else {"expand_share": self._pairs.share}),
            **dataclasses.asdict(self._packing),
        }

    def batches(
        self, *, start_row: int = 0, process_index: int = 0, process_count: int = 1, threads: int = 4
    ) -> "Batches":
        """Returns the endless iterator of one process's part of each global batch, from `start_row` on.

        Nothing before `start_row` is read. Raises `UserError` when the processes cannot share a batch.
        """
        if self._packing.rows % process_count:
            raise UserError(
                f"packing.rows = {self._packing.rows} rows in a batch cannot be shared by {process_count} "
                f"processes: make it a multiple of {process_count}"
            )
        assert 0 <= process_index < process_count, (process_index, process_count)
        return Batches(
            self,
            next_row=start_row,
            rows_per_batch=self._packing.rows,
            process_index=process_index,
            process_count=process_count,
            threads=threads,
        )


def put_sample(
    row: Row,
    index: int,
    sample: Prepared,
    caption: int,
    *,
    kept: np.ndarray | slice = ALL_TOKENS,
    beside: Sequence[str] = (),
) -> slice:
    """Adds a prepared sample to a row under its index, with one of its captions and the clips `beside` it; as `put`."""
    layout = row.layout
    t, h, w, _ = sample.latent_THWC.shape
    return row.put(
        sample=index,
        grid=shapes.token_grid((t, h, w), layout.patch),
        fps=sample.fps,
        text=_text(sample, caption, layout.tokenizer),
        tokens_LP=patchify(sample.latent_THWC, layout.patch),
        kept=kept,
        shown=_shown(sample, layout),
        context=[(sample.context or {})[kind] for kind in beside],
    )


def _lengths(prepared: PreparedSet, context: ContextMix | None, patch: shapes.Size) -> Lengths:
    """Returns what planning knows; UserError for a latent that is not divisible by the patch."""
    for sample in np.flatnonzero(np.any(prepared.grid_N3 % patch, axis=1))[:1].tolist():
        shapes.token_grid(tuple(prepared.grid_N3[sample].tolist()), patch)
    return Lengths(
        tokens_N=np.prod(prepared.grid_N3 // patch, axis=1),
        text_tokens_M=prepared.text_tokens_M,
        caption_start_N1=prepared.caption_start_N1,
        weights_M=prepared.weights_M,
        context_NX=None if context is None else _context_tokens(prepared, context, patch),
    )


def _context_tokens(prepared: PreparedSet, context: ContextMix, patch: shapes.Size) -> np.ndarray:
    """Returns context_NX, the tokens of the clips beside each sample; UserError for kinds that were not prepared."""
    lacking = [kind for kind in context.kinds if kind not in prepared.context_grids]
    if lacking:
        raise UserError(
            f"context has {', '.join(lacking)}, and the clips were prepared with "
            f"{', '.join(prepared.context_grids) or 'nothing beside them'}: add it to context.kinds and prepare anew"
        )
    columns = [np.prod(prepared.context_grids[kind] // patch, axis=1) for kind in context.kinds]
    return np.stack(columns, axis=1) if columns else np.zeros((len(prepared), 0), np.int64)


def _text(sample: Prepared, caption: int, tokenizer: Tokenizer) -> Text:
    """Returns the arrays of one of a sample's captions: those that the shard has, or made of its words."""
    if sample.texts is not None:
        return sample.texts[caption]
    return tokenizer.encode([sample.captions[caption]])[0]


def _shown(sample: Prepared, layout: PackLayout) -> Shown | None:
    """Returns what the model is shown of a sample: the frames that its shard was made for."""
    if layout.shown is None:
        return None
    assert sample.shown_THWC is not None, sample.source_id
    shown_T = shown_frames(sample.pixel_shape[0], last=layout.shown.last == "must")
    return Shown(join(sample.shown_THWC, shown_T, stride=layout.temporal_stride), sample.image_ME)


class _Part:
    """A grain source of the rows of one process: the contiguous part of each batch that is its own."""

    def __init__(self, rows: RowDataset, *, start: int, per_batch: int, process: int, count: int):
        self._rows = rows
        self._start = start
        self._per_batch = per_batch
        self._own = per_batch // count
        self._offset = process * self._own

    def __len__(self) -> int:
        return sys.maxsize // (2 * self._per_batch)  # grain adds to it

    def __getitem__(self, index: int) -> HostPack:
        batch, slot = divmod(index, self._own)
        return self._rows[self._start + batch * self._per_batch + self._offset + slot]


class Batches(Iterator[HostPack]):
    """Endless iterator of one process's packs, read ahead by threads; `next_row` is its whole state.

    `next_row` is the global number of the first row not yet returned (by any process). Close it when done
    with it, or use it as a context manager: its threads read on until then.
    """

    def __init__(
        self,
        rows: RowDataset,
        *,
        next_row: int,
        rows_per_batch: int,
        process_index: int,
        process_count: int,
        threads: int,
    ):
        assert next_row >= 0, next_row
        self.next_row = next_row
        self._rows_per_batch = rows_per_batch
        own = rows_per_batch // process_count
        part = _Part(rows, start=next_row, per_batch=rows_per_batch, process=process_index, count=process_count)
        # Whole batches are read ahead, so that handing one over costs the loop nothing.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        self._iterator = iter(grain.MapDataset.source(part).batch(own).to_iter_dataset(options))

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> HostPack:
        pack = next(self._iterator)
        self.next_row += self._rows_per_batch
        return pack

    def close(self) -> None:
        """Ends the reading threads."""
        self._iterator.close()


def _check_empty_text(prepared: PreparedSet, tokenizer: Tokenizer) -> None:
    """Raises DataError where texts are stored, and not the empty one, which dropped captions leave."""
    if tokenizer.stored and prepared.empty_text is None:
        raise DataError(
            f"the prepared set holds the captions' states and not those of the empty text: {EMPTY_TEXT_FILE} is "
            "missing; restore it from a copy, or run prepare, which writes it anew"
        )


def check_resume(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    fresh_data: bool = False,
    reworded: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Returns in words in which fields two `RowDataset.fingerprint` differ, old and new; "" where they do not.

    Raises `UserError` that says so unless `fresh_data` allows it, or nothing but captions changed: of data that were
    reworded `reworded` has what captions do not alter (`PreparedSet.clips_fingerprint`), by the field "data".
    """
    old, new = (reworded.get(str(facts.get("data"))) for facts in (saved, current))
    captions_alone = {"data"} if old is not None and old == new else set[str]()
    differing = [name for name in sorted(saved.keys() | current.keys()) if saved.get(name) != current.get(name)]
    said = {name: ", of which captions alone changed," if name in captions_alone else "" for name in differing}
    changes = "; ".join(
        f"{name}{what} was {saved.get(name)!r} and is now {current.get(name)!r}" for name, what in said.items()
    )
    if not fresh_data and not captions_alone.issuperset(differing):
        raise UserError(
            f"the data would not go on where it stopped: {changes}: go back to the old values, start a new workdir, "
            "or pass --fresh_data to keep the weights and go on with the new data"
        )
    return changes
