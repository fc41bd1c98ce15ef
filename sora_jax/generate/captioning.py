"""Captions of clips: a captioner sees packed clips once, then writes all their captions in step.

Shapes: B rows, L tokens, S segments, C = B S captions, W beams of a caption, R = S W texts of a row, N = C W
hypotheses, K tokens of a caption, Q slots of a token.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core.compiling import run_often
from sora_jax.core.errors import UserError
from sora_jax.core.tree import Params, merge_model
from sora_jax.data.caption_tokens import read_tokens, spell_words
from sora_jax.data.packing.packs import HostPack, PackLayout, stack_rows
from sora_jax.data.packing.plan import plan_window
from sora_jax.data.tokens import BYTES_PER_TOKEN
from sora_jax.generate.decoding import Asked, CaptioningConfig, Decoded, Writer, WriterMemory, decode
from sora_jax.models.caption_blocks import Keys
from sora_jax.models.caption_tokens import with_end
from sora_jax.models.captioner import Captioner, ClipFeatures, Writing
from sora_jax.models.text_to_video import Pack
from sora_jax.video import shapes
from sora_jax.video.patches import patchify

_NO_CLIP: shapes.Size = (0, 0, 0)


class LatentClip(Protocol):
    """A clip as it is prepared."""

    @property
    def latent_THWC(self) -> np.ndarray:
        """Its latent, float32, normalised."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodedClip:
    """A `LatentClip` that was encoded for this."""

    latent_THWC: np.ndarray
    fps: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenCaption:
    """What was written about a clip.

    Attributes:
      text: The caption, without what it was asked to begin with.
      score: Mean log-probability of a token, nats.
      whole: Whether it came to its end; where not, it is cut.
    """

    text: str
    score: float
    whole: bool


class Describer:
    """Writes captions of clips, many at a time, by programs of one shape.

    Args:
      structure: Of the captioner, from `core.tree`.
      layout: Of rows; what it says of texts has no effect.
      rows: Of a batch.
      max_tokens: Text tokens of a caption, START included.
      config: How captions are written.
      dtype: Of the computation.
      writer: `PackWriter`, or what is called as it is.
    """

    def __init__(
        self,
        structure: Hashable,
        layout: PackLayout,
        *,
        rows: int,
        max_tokens: int,
        config: CaptioningConfig,
        dtype: Any,
        writer: Callable[..., Writer],
    ):
        self._layout, self._rows, self._length = layout, rows, max_tokens + 1
        self._describe = _make_program(structure, config, dtype, writer)
        self._compare = _make_comparison(structure, dtype)

    def __call__(
        self, params: Params, clips: Sequence[LatentClip], *, prefix: str = "", seed: int = 0
    ) -> list[WrittenCaption]:
        """Returns a caption of each clip, in order, each of which begins with `prefix`; `seed` is for drawn ones.

        A caption does not depend on the other clips. Raises UserError where a row does not hold a clip.
        """
        key_N = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(jnp.arange(len(clips)))
        return self._write(params, clips, [prefix] * len(clips), key_N)

    def go_on(self, params: Params, texts: Sequence[str], keys: Sequence[jax.Array]) -> list[WrittenCaption]:
        """Returns what is written behind each text, in order, without any clip; `keys` are for what is drawn.

        What follows a text does not depend on the others.
        """
        return self._write(params, [None] * len(texts), texts, jnp.stack(keys)) if texts else []

    def _write(
        self, params: Params, clips: Sequence[LatentClip | None], prefixes: Sequence[str], key_N: jax.Array
    ) -> list[WrittenCaption]:
        given = [spell_words(prefix)[: self._length - 1] for prefix in prefixes]
        found: dict[int, WrittenCaption] = {}
        for pack in self._packs(clips, [""] * len(clips)):
            samples = pack["sample_BS"].ravel().tolist()
            asked_CKQ = np.zeros((len(samples), self._length, BYTES_PER_TOKEN), np.int32)
            asked_C = np.zeros(len(samples), np.int32)
            for place, sample in enumerate(samples):
                if sample >= 0:
                    asked_C[place] = len(given[sample])
                    asked_CKQ[place, : len(given[sample])] = given[sample]
            asked = Asked(jnp.asarray(asked_CKQ), jnp.asarray(asked_C), key_N[np.maximum(samples, 0)])
            # All at once: a transfer for each number would take longer than writing.
            decoded = jax.device_get(self._describe(params, pack, asked))
            for place, sample in enumerate(samples):
                if sample >= 0:
                    found[sample] = _written(decoded, place, len(given[sample]))
        return [found[number] for number in range(len(clips))]

    def compared(
        self, params: Params, clips: Sequence[LatentClip], captions: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns what clips and captions, as many, are compared by: (N, E) each, float32 of length 1.

        The product of two is how well they agree, in [-1, 1]. Raises UserError as above.
        """
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for pack in self._packs(clips, captions):
            embedded = [np.asarray(one) for one in self._compare(params, pack)]
            for row, slot in np.argwhere(pack["sample_BS"] >= 0).tolist():
                of_clip, of_text = (one[row, slot] for one in embedded)
                found[int(pack["sample_BS"][row, slot])] = of_clip, of_text
        pairs = [found[number] for number in range(len(clips))]
        return np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])

    def _packs(self, clips: Sequence[LatentClip | None], captions: Sequence[str]) -> Iterator[HostPack]:
        """Yields batches that hold each clip once, with its caption; of None the caption alone."""
        layout = self._layout
        grids = [_NO_CLIP if one is None else shapes.token_grid(_size_of(one), layout.patch) for one in clips]
        texts = layout.tokenizer.encode([layout.tokenizer.cut(text, self._length - 1) for text in captions])
        tokens_N = np.array([max(1, shapes.count(grid)) for grid in grids], np.int64)
        if tokens_N.max(initial=0) > layout.budget.tokens:
            raise UserError(
                f"a clip of {tokens_N.max()} tokens fits no row of {layout.budget.tokens}: make it shorter or smaller, "
                "or take a run with a larger packing.tokens"
            )
        text_N = np.array([len(next(iter(text.values()))) for text in texts], np.int64)
        plan = plan_window(tokens_N, text_N, layout.budget, seed=0)
        for start in range(0, len(plan), self._rows):
            filled = [layout.row() for _ in range(self._rows)]
            for row, number in zip(filled, range(start, len(plan)), strict=False):
                for index in plan.row(number).tolist():
                    clip, text, grid = clips[index], texts[index], grids[index]
                    if clip is None:
                        row.put(sample=index, grid=grid, fps=1.0, text=text, tokens_LP=None)
                        continue
                    tokens_LP = patchify(clip.latent_THWC, layout.patch)
                    row.put(sample=index, grid=grid, fps=clip.fps, text=text, tokens_LP=tokens_LP)
            yield stack_rows(filled)


def _size_of(clip: LatentClip) -> shapes.Size:
    frames, height, width, _ = clip.latent_THWC.shape
    return frames, height, width


def _written(decoded: Decoded, place: int, given: int) -> WrittenCaption:
    """Returns the caption at a place, without the tokens that were given."""
    tokens_KQ = np.asarray(decoded.tokens_CKQ[place])[given:]
    whole = bool(decoded.done_C[place])
    return WrittenCaption(text=read_tokens(tokens_KQ), score=float(decoded.score_C[place]), whole=whole)


@functools.lru_cache(maxsize=4)
def _make_program(
    structure: Any, config: CaptioningConfig, dtype: Any, make_writer: Callable[..., Writer]
) -> Callable[..., Decoded]:
    """Returns the jitted `(params, pack, what is asked) -> Decoded` of all segments."""

    def describe(params: Params, pack: Pack, asked: Asked) -> Decoded:
        model = merge_model(structure, params)
        writer = make_writer(model, model.encode(pack, dtype), beams=config.hypotheses)
        return decode(writer, asked, config)

    return jax.jit(describe, compiler_options=run_often())


@functools.lru_cache(maxsize=4)
def _make_comparison(structure: Any, dtype: Any) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns the jitted `(params, pack) -> what clips, and their captions, are compared by`, (B, S, E) each."""

    def compare(params: Params, pack: Pack) -> tuple[jax.Array, jax.Array]:
        model, segments = merge_model(structure, params), pack["grid_BS3"].shape[1]
        read = model.read(with_end(pack, segments), segments, dtype)
        return model.encode(pack, dtype).embedding_BSE, read.embedding_BSE

    return jax.jit(compare, compiler_options=run_often())


class PackWriter:
    """A captioner that writes about the clips of a pack; see `generate.decoding.Writer`."""

    def __init__(self, model: Captioner, features: ClipFeatures, *, beams: int):
        self._model, self._features = model, features
        rows, segments = features.embedding_BSE.shape[:2]
        self._segment_BR = jnp.broadcast_to(jnp.repeat(jnp.arange(1, segments + 1), beams), (rows, segments * beams))
        # The clips are the same all the time, so they are no part of what is kept of each hypothesis.
        self._clips = model.begin(features, texts=segments * beams, max_tokens=1)

    def begin(self, count: int, length: int) -> WriterMemory:
        """Returns keys and values of what is written, none so far."""
        assert count == self._segment_BR.size, (count, self._segment_BR.shape)
        return _written_keys(self._model.begin(self._features, texts=self._segment_BR.shape[1], max_tokens=length))

    def read(self, memory: WriterMemory, token_NQ: jax.Array, place: jax.Array) -> tuple[jax.Array, WriterMemory]:
        """Takes the token at `place` of each caption; returns what the next one is written from, (N, D)."""
        text_BRQ = token_NQ.reshape(*self._segment_BR.shape, -1)
        state_BRD, writing = self._model.step(self._clips._replace(**memory), text_BRQ, self._segment_BR, place)
        return state_BRD.reshape(len(token_NQ), -1), _written_keys(writing)

    def moved(self, memory: WriterMemory, parent_N: jax.Array) -> WriterMemory:
        """Returns the memory in which each caption is what `parent_N`, of the same row, was."""
        rows, texts = self._segment_BR.shape
        index_BR = parent_N.reshape(rows, texts) - texts * jnp.arange(rows)[:, None]
        return _written_keys(self._clips._replace(**memory).taken(index_BR))

    def begin_token(self, state_NH: jax.Array) -> WriterMemory:
        """Returns a token of which nothing is written."""
        return self._model.speller.begin(state_NH)

    def spell(self, letters: WriterMemory, value_N: jax.Array, slot: jax.Array) -> tuple[jax.Array, WriterMemory]:
        """Takes the value in the slot before; returns logits of the slot, (N, V)."""
        return self._model.speller.step(letters, value_N, slot)


def _written_keys(writing: Writing) -> dict[str, Keys]:
    """Returns the keys of what is written; those of the clips stay as they are."""
    return {"unimodal": writing.unimodal, "multimodal": writing.multimodal}
