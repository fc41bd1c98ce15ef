"""Captions written token by token, and byte by byte within a token: greedy, by beams, or drawn.

Letters: C captions, W beams of a caption, N = C W hypotheses (the beams of a caption are neighbours), K tokens of a
caption at most, Q slots of a token, V values of a slot, H width of what a token is written from.

What is written never depends on what else is written at the same time.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError
from sora_jax.data.caption_tokens import MARK, SLOT_VALUES
from sora_jax.data.tokens import BYTES_PER_TOKEN
from sora_jax.generate.letters import WordState, may_follow, nothing_written, write_value

# A pytree of arrays.
WriterMemory = Any
METHODS_OF_WRITING = ("greedy", "beam", "nucleus")
_NEVER = -jnp.inf
_PRIME = 0x01000193  # of FNV-1a, a digest of 32 bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptioningConfig:
    """How captions are written.

    Attributes:
      method: "greedy": the likeliest value each time; "beam": the likeliest of several captions; "nucleus": drawn.
      beams: Captions that "beam" follows at once.
      length_penalty: The power of ((5 + tokens) / 6) by which "beam" divides log-probabilities: 0 prefers short ones.
      temperature: Of "nucleus": log-probabilities are divided by it.
      top_p: Of "nucleus": it draws among the likeliest values that together have so much probability.
      no_repeat: So many words in a row are not written twice in a caption; 0: whatever.
    """

    method: str
    beams: int
    length_penalty: float
    temperature: float
    top_p: float
    no_repeat: int

    def __post_init__(self):
        if self.method not in METHODS_OF_WRITING:
            raise UserError(f"captioning.method {self.method!r} is not one of: {', '.join(METHODS_OF_WRITING)}")
        for name, value, fits, range_ in (
            ("beams", self.beams, 1 <= self.beams <= SLOT_VALUES, f"1 to {SLOT_VALUES}"),
            ("length_penalty", self.length_penalty, self.length_penalty >= 0, "0 or more"),
            ("temperature", self.temperature, self.temperature > 0, "over 0"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "over 0 and at most 1"),
            ("no_repeat", self.no_repeat, self.no_repeat == 0 or self.no_repeat >= 2, "0, or 2 or more"),
        ):
            if not fits:
                raise UserError(f"captioning.{name} {value:g} must be {range_}")

    @property
    def hypotheses(self) -> int:
        """W."""
        return self.beams if self.method == "beam" else 1


class Writer(Protocol):
    """What is asked of a captioner that is to write N captions."""

    def begin(self, count: int, length: int) -> WriterMemory:
        """Returns the memory of N captions of up to K tokens, of which nothing was read."""
        ...

    def read(self, memory: WriterMemory, token_NQ: jax.Array, place: jax.Array) -> tuple[jax.Array, WriterMemory]:
        """Takes the token at `place` of each caption; returns (N, H), from which the next one is written."""
        ...

    def moved(self, memory: WriterMemory, parent_N: jax.Array) -> WriterMemory:
        """Returns the memory in which each caption is what number `parent_N`, a beam of the same caption, was."""
        ...

    def begin_token(self, state_NH: jax.Array) -> WriterMemory:
        """Returns the memory of a token of which nothing is written: arrays that begin with the axis N."""
        ...

    def spell(self, letters: WriterMemory, value_N: jax.Array, slot: jax.Array) -> tuple[jax.Array, WriterMemory]:
        """Takes the value in the slot before (of the first slot 0); returns logits of the slot, (N, V)."""
        ...


class Asked(NamedTuple):
    """What is asked of each caption.

    Attributes:
      prefix_CKQ: int32 tokens that it begins with, START first.
      prefix_C: int32 number of these; 0: nothing is asked, nor written.
      key_C: What "nucleus" draws with, a key of each.
    """

    prefix_CKQ: jax.Array
    prefix_C: jax.Array
    key_C: jax.Array


class Decoded(NamedTuple):
    """What was written.

    Attributes:
      tokens_CKQ: int32, the prefix and END included.
      score_C: float32 mean log-probability of a token beyond the prefix, END included, nats.
      done_C: Whether END was reached; where not, the caption is cut.
    """

    tokens_CKQ: jax.Array
    score_C: jax.Array
    done_C: jax.Array


class _Words(NamedTuple):
    """Words beyond the prefix: a digest and the first value of each, their number, and the same of the one at hand."""

    digest_NK: jax.Array
    first_NK: jax.Array
    count_N: jax.Array
    digest_N: jax.Array
    first_N: jax.Array


class _State(NamedTuple):
    place: jax.Array
    tokens_NKQ: jax.Array
    total_N: jax.Array  # log-probability
    length_N: jax.Array  # tokens beyond the prefix
    written: WordState
    words: _Words
    memory: WriterMemory


def decode(writer: Writer, asked: Asked, config: CaptioningConfig) -> Decoded:
    """Returns a caption for each that is asked, of up to K tokens."""
    beams = config.hypotheses
    count, length = asked.prefix_CKQ.shape[:2]
    own = Asked(*(jnp.repeat(one, beams, axis=0) for one in asked))
    state = _begin(writer, own, beams)

    def unfinished(state: _State) -> jax.Array:
        return (state.place < length - 1) & ~jnp.all(_settled(state, beams, config, length))

    def step(state: _State) -> _State:
        token_NQ = jax.lax.dynamic_index_in_dim(state.tokens_NKQ, state.place, axis=1, keepdims=False)
        hidden_NH, memory = writer.read(state.memory, token_NQ, state.place)
        return _write_token(writer, state._replace(memory=memory), hidden_NH, own, config)

    state = jax.lax.while_loop(unfinished, step, state)
    best_C = jnp.argmax(_rank(state, state.total_N, config).reshape(count, beams), axis=1) + beams * jnp.arange(count)
    return Decoded(
        tokens_CKQ=state.tokens_NKQ[best_C],
        score_C=state.total_N[best_C] / jnp.maximum(state.length_N[best_C], 1),
        done_C=state.written.done_N[best_C],
    )


def _begin(writer: Writer, asked: Asked, beams: int) -> _State:
    count, length = asked.prefix_CKQ.shape[:2]
    zero_N = jnp.zeros(count, jnp.int32)
    none_NK = jnp.zeros((count, length), jnp.uint32)
    return _State(
        place=jnp.int32(0),
        tokens_NKQ=jnp.where((jnp.arange(length) < asked.prefix_C[:, None])[..., None], asked.prefix_CKQ, 0),
        # Beams that are all alike would stay so.
        total_N=jnp.where(jnp.arange(count) % beams == 0, 0.0, _NEVER).astype(jnp.float32),
        length_N=zero_N,
        written=nothing_written(count)._replace(done_N=asked.prefix_C == 0),
        words=_Words(none_NK, none_NK.astype(jnp.int32), zero_N, zero_N.astype(jnp.uint32), zero_N),
        memory=writer.begin(count, length),
    )


def _penalty(length_N: jax.Array | int, config: CaptioningConfig) -> jax.Array:
    return ((5.0 + jnp.asarray(length_N, jnp.float32)) / 6.0) ** config.length_penalty


def _rank(state: _State, total_N: jax.Array, config: CaptioningConfig) -> jax.Array:
    return total_N / _penalty(state.length_N, config)


def _settled(state: _State, beams: int, config: CaptioningConfig, length: int) -> jax.Array:
    """Returns for which captions nothing better can come any more, (C,).

    Log-probabilities only fall, and the penalty is largest for the longest caption.
    """
    done_CW = state.written.done_N.reshape(-1, beams)
    best_CW = jnp.where(done_CW, _rank(state, state.total_N, config).reshape(-1, beams), _NEVER)
    hope_CW = jnp.where(done_CW, _NEVER, (state.total_N / _penalty(length, config)).reshape(-1, beams))
    return done_CW.any(axis=1) & (best_CW.max(axis=1) >= hope_CW.max(axis=1))


def _write_token(writer: Writer, state: _State, hidden_NH: jax.Array, asked: Asked, config: CaptioningConfig) -> _State:
    """Returns the state with the token after `place` written, each value in turn."""
    place, count = state.place + 1, len(hidden_NH)
    given_NQ = jax.lax.dynamic_index_in_dim(asked.prefix_CKQ, place, axis=1, keepdims=False)
    is_given_N = place < asked.prefix_C
    length_N = state.length_N + (~is_given_N & ~state.written.done_N)
    banned_NV = _repeating(state.words, config.no_repeat)

    def write(carry: Any, slot: jax.Array) -> tuple[Any, None]:
        (written, total_N, origin_N, token_NQ), letters, value_N = carry
        logits_NV, letters = writer.spell(letters, value_N, slot)
        may_NV = may_follow(written, slot)
        # Hypotheses are as at the beginning of the token where that matters.
        likely_NV = may_NV & ~(banned_NV & (slot == 0) & ~written.goes_on_N[:, None])
        gain_NV = jnp.where(likely_NV, jax.nn.log_softmax(logits_NV.astype(jnp.float32)), _NEVER)
        # A token that is given costs nothing, nor does one that is over.
        given_NV = jnp.arange(SLOT_VALUES) == given_NQ[:, slot, None]
        free_NV = jnp.where(is_given_N[:, None], given_NV, may_NV)
        is_free_N = is_given_N | written.word_over_N | written.done_N
        gain_NV = jnp.where(is_free_N[:, None], jnp.where(free_NV, 0.0, _NEVER), gain_NV)
        number = place * BYTES_PER_TOKEN + slot
        parent_N, value_N = _choose(total_N, gain_NV, length_N[origin_N], asked.key_C, number, config)
        total_N = total_N[parent_N] + gain_NV[parent_N, value_N]
        written, origin_N, token_NQ, letters = _moved((written, origin_N, token_NQ, letters), parent_N, config)
        written, token_NQ = write_value(written, value_N, slot), token_NQ.at[:, slot].set(value_N)
        return ((written, total_N, origin_N, token_NQ), letters, value_N), None

    kept = (state.written, state.total_N, jnp.arange(count), jnp.zeros((count, BYTES_PER_TOKEN), jnp.int32))
    first = (kept, writer.begin_token(hidden_NH), jnp.zeros(count, jnp.int32))
    ((written, total_N, origin_N, token_NQ), _, _), _ = jax.lax.scan(write, first, jnp.arange(BYTES_PER_TOKEN))
    tokens_NKQ, length_N, words = _moved((state.tokens_NKQ, length_N, state.words), origin_N, config)
    memory = writer.moved(state.memory, origin_N) if config.hypotheses > 1 else state.memory
    tokens_NKQ = jax.lax.dynamic_update_index_in_dim(tokens_NKQ, token_NQ, place, axis=1)
    words = _note_word(words, token_NQ, written, counts_N=~is_given_N)
    return _State(place, tokens_NKQ, total_N, length_N, written, words, memory)


def _moved(tree: Any, parent_N: jax.Array, config: CaptioningConfig) -> Any:
    """Returns what belongs to each hypothesis after the one that it continues; without beams that is itself."""
    return jax.tree.map(lambda one: one[parent_N], tree) if config.hypotheses > 1 else tree


def _choose(
    total_N: jax.Array,
    gain_NV: jax.Array,
    length_N: jax.Array,
    key_N: jax.Array,
    number: jax.Array,
    config: CaptioningConfig,
) -> tuple[jax.Array, jax.Array]:
    """Returns which hypothesis each one continues, and with which value."""
    count, beams = len(gain_NV), config.hypotheses
    if config.method == "beam":
        rank_NV = (total_N[:, None] + gain_NV) / _penalty(length_N, config)[:, None]
        _, best_CW = jax.lax.top_k(rank_NV.reshape(count // beams, -1), beams)
        first_C1 = beams * jnp.arange(count // beams)[:, None]
        return (first_C1 + best_CW // SLOT_VALUES).reshape(-1), (best_CW % SLOT_VALUES).reshape(-1)
    if config.method == "greedy":
        return jnp.arange(count), _likeliest(gain_NV)
    scaled_NV = jax.nn.log_softmax(gain_NV / config.temperature)
    order_NV = jnp.argsort(-scaled_NV, axis=1)
    sorted_NV = jnp.take_along_axis(scaled_NV, order_NV, axis=1)
    before_NV = jnp.cumsum(jnp.exp(sorted_NV), axis=1) - jnp.exp(sorted_NV)
    nucleus_NV = jnp.where(before_NV < config.top_p, sorted_NV, _NEVER)
    drawn_N = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, number), row))(key_N, nucleus_NV)
    return jnp.arange(count), jnp.take_along_axis(order_NV, drawn_N[:, None], axis=1)[:, 0]


def _likeliest(gain_NV: jax.Array) -> jax.Array:
    """Returns the first of the largest values of each row, as argmax does, by reductions that XLA vectorises on CPU."""
    is_top_NV = gain_NV == jnp.max(gain_NV, axis=1, keepdims=True)
    first_N = jnp.min(jnp.where(is_top_NV, jnp.arange(SLOT_VALUES), SLOT_VALUES), axis=1)
    return jnp.minimum(first_N, SLOT_VALUES - 1)  # in range where a logit is NaN, too


def _note_word(words: _Words, token_NQ: jax.Array, written: WordState, *, counts_N: jax.Array) -> _Words:
    """Returns the words after a token; those of the prefix do not count."""
    digest_N = words.digest_N
    for slot in range(BYTES_PER_TOKEN):
        value_N = token_NQ[:, slot]
        mixed_N = (digest_N ^ value_N.astype(jnp.uint32)) * jnp.uint32(_PRIME)
        digest_N = jnp.where((value_N > 0) & (value_N < MARK), mixed_N, digest_N)
    first_N = jnp.where(words.first_N == 0, token_NQ[:, 0], words.first_N)
    over_N = counts_N & ~written.goes_on_N & ~written.done_N
    here_NK = over_N[:, None] & (jnp.arange(words.digest_NK.shape[1]) == words.count_N[:, None])
    left_N = counts_N & ~over_N
    return _Words(
        digest_NK=jnp.where(here_NK, digest_N[:, None], words.digest_NK),
        first_NK=jnp.where(here_NK, first_N[:, None], words.first_NK),
        count_N=words.count_N + over_N,
        digest_N=jnp.where(left_N, digest_N, 0),
        first_N=jnp.where(left_N, first_N, 0),
    )


def _repeating(words: _Words, most: int) -> jax.Array:
    """Returns the values that words begin with after which `most` words in a row would stand there twice, (N, V).

    Another word that begins alike is left out with them: a word that is begun must not become what it is not.
    """
    count, length = words.digest_NK.shape
    none_NV = jnp.zeros((count, SLOT_VALUES), bool)
    if not most:
        return none_NV
    place_K = jnp.arange(length)
    again_NK = (place_K >= most - 1) & (place_K < words.count_N[:, None])
    for back in range(1, most):
        last_N1 = jnp.take_along_axis(words.digest_NK, jnp.maximum(words.count_N - back, 0)[:, None], axis=1)
        again_NK &= jnp.roll(words.digest_NK, back, axis=1) == last_N1
    return none_NV.at[jnp.arange(count)[:, None], words.first_NK].max(again_NK)
