import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.caption_tokens import SLOT_VALUES, end_token, read_tokens, spell_words
from sora_jax.data.tokens import BYTES_PER_TOKEN
from sora_jax.generate.decoding import Asked, CaptioningConfig, decode

GREEDY = CaptioningConfig(method="greedy", beams=4, length_penalty=0.6, temperature=1.0, top_p=0.9, no_repeat=0)
LENGTH = 12


class TableWriter:
    """Knows the captions of each clip and their probabilities, and writes exactly by these; off them all is alike."""

    def __init__(self, texts, weights, beams):
        tokens = [[np.concatenate([spell_words(text), end_token()[None]]) for text in own] for own in texts]
        padded = [[np.pad(one, ((0, LENGTH - len(one)), (0, 0))) for one in own] for own in tokens]
        self.tokens_NTKQ = jnp.repeat(jnp.asarray(padded), beams, axis=0)
        self.weight_NT = jnp.repeat(jnp.asarray(weights, jnp.float32), beams, axis=0)

    def begin(self, count, length):
        return jnp.ones(self.tokens_NTKQ.shape[:2], bool), jnp.arange(count)

    def read(self, memory, token_NQ, place):
        matches_NT, clip_N = memory
        own_NTQ = self.tokens_NTKQ[clip_N][:, :, place]
        matches_NT = matches_NT & (own_NTQ == token_NQ[:, None]).all(axis=-1)
        following_NTQ = self.tokens_NTKQ[clip_N][:, :, place + 1]
        state_NTH = jnp.concatenate([(matches_NT * self.weight_NT[clip_N])[..., None], following_NTQ], axis=-1)
        return state_NTH.reshape(len(token_NQ), -1), (matches_NT, clip_N)

    def moved(self, memory, parent_N):
        return tuple(one[parent_N] for one in memory)

    def begin_token(self, state_NH):
        return state_NH.reshape(len(state_NH), -1, 1 + BYTES_PER_TOKEN)

    def spell(self, letters, value_N, slot):
        weight_NT, values_NTQ = letters[..., 0], letters[..., 1:]
        before_NT = jnp.take(values_NTQ, jnp.maximum(slot - 1, 0), axis=-1)
        weight_NT = jnp.where((slot == 0) | (before_NT == value_N[:, None]), weight_NT, 0)
        own_NT = jnp.take(values_NTQ, slot, axis=-1).astype(jnp.int32)
        mass_NV = (weight_NT[..., None] * jax.nn.one_hot(own_NT, SLOT_VALUES)).sum(axis=1)
        return jnp.log(mass_NV + 1e-9), letters.at[..., 0].set(weight_NT)


class NoisyWriter:
    """Its logits are noise of all that it has read."""

    def __init__(self, seed):
        self.seed = seed

    def begin(self, count, length):
        return jnp.full(count, self.seed, jnp.uint32)

    def read(self, memory, token_NQ, place):
        mixed_N = memory * jnp.uint32(31) + (token_NQ * jnp.arange(3, 11)).sum(axis=1).astype(jnp.uint32)
        return mixed_N[:, None], mixed_N

    def moved(self, memory, parent_N):
        return memory[parent_N]

    def begin_token(self, state_NH):
        return state_NH[:, 0]

    def spell(self, letters, value_N, slot):
        letters = letters * jnp.uint32(131) + value_N.astype(jnp.uint32)
        draw = jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), (SLOT_VALUES,)))
        # Without END, and rarely the end of a word: long words, of many scripts.
        return 4 * draw(letters) + 2 * (jnp.arange(SLOT_VALUES) > 128), letters


def asked(count, prefixes=None, seed=0, length=LENGTH):
    rows = [spell_words(text) for text in prefixes or [""] * count]
    prefix_CKQ = np.stack([np.pad(row, ((0, length - len(row)), (0, 0))) for row in rows])
    keys = jax.vmap(lambda one: jax.random.fold_in(jax.random.key(seed), one))(jnp.arange(count))
    return Asked(jnp.asarray(prefix_CKQ), jnp.asarray([len(row) for row in rows]), keys)


def texts_of(decoded):
    return [read_tokens(np.asarray(tokens)) for tokens in decoded.tokens_CKQ]


TEXTS = [["a red triangle on a background", "a cat"], ["größer als 猫が走っています", "a triangles b"]]


def test_greedy_writes_the_likeliest_caption_of_each_clip_with_its_score():
    found = decode(TableWriter(TEXTS, [[0.7, 0.3], [0.2, 0.8]], 1), asked(2), GREEDY)
    assert texts_of(found) == ["a red triangle on a background", "a triangles b"]
    assert np.asarray(found.done_C).all()
    tokens = [len(spell_words(text)) for text in texts_of(found)]
    expected = [math.log(0.7) / tokens[0], math.log(0.8) / tokens[1]]
    np.testing.assert_allclose(found.score_C, expected, atol=1e-5)


def test_where_nothing_is_asked_nothing_is_written():
    both = asked(2)
    found = decode(TableWriter(TEXTS, [[0.7, 0.3], [0.2, 0.8]], 1), both._replace(prefix_C=jnp.array([0, 1])), GREEDY)
    assert texts_of(found) == ["", "a triangles b"]
    np.testing.assert_array_equal(found.tokens_CKQ[0], 0)
    assert float(found.score_C[0]) == 0


# The first word of the likeliest caption is not the likeliest first word.
BRANCHED = [["a dog", "a fox", "the cat"]]
SHARES = [[0.33, 0.27, 0.4]]


def test_beams_find_what_greed_misses():
    config = dataclasses.replace(GREEDY, method="beam", length_penalty=0.0)
    greedy = decode(TableWriter(BRANCHED, SHARES, 1), asked(1), GREEDY)
    beam = decode(TableWriter(BRANCHED, SHARES, 4), asked(1), config)
    assert texts_of(greedy) == ["a dog"]
    assert texts_of(beam) == ["the cat"]


@pytest.mark.parametrize(("penalty", "text"), [(0.0, "a"), (2.0, "a cat on the mat that sat")])
def test_the_length_penalty_weighs_long_captions_against_short_ones(penalty, text):
    config = dataclasses.replace(GREEDY, method="beam", length_penalty=penalty)
    writer = TableWriter([["a", "a cat on the mat that sat"]], [[0.6, 0.4]], 4)
    assert texts_of(decode(writer, asked(1), config)) == [text]


@pytest.mark.slow
def test_what_is_drawn_is_as_frequent_as_it_is_likely_and_in_the_nucleus_alone():
    count = 400
    config = dataclasses.replace(GREEDY, method="nucleus", top_p=0.8)
    texts, weights = [["a", "b", "c"]] * count, [[0.5, 0.35, 0.15]] * count
    drawn = texts_of(decode(TableWriter(texts, weights, 1), asked(count), config))
    assert set(drawn) == {"a", "b"}
    assert abs(drawn.count("a") / count - 0.5 / 0.85) < 0.08
    one = texts_of(decode(TableWriter(texts[:9], weights[:9], 1), asked(9), config))
    assert one == drawn[:9], "a draw depends on what else is drawn"


def test_a_caption_goes_on_from_its_prefix():
    prefixes = ["short:", "a longer prefix"]
    texts = [["short: a cat", "detailed: a cat"], ["a longer prefix that goes on", "other"]]
    found = decode(TableWriter(texts, [[0.1, 0.9], [0.1, 0.9]], 1), asked(2, prefixes), GREEDY)
    assert texts_of(found) == ["short: a cat", "a longer prefix that goes on"]
    np.testing.assert_allclose(found.score_C, 0.0, atol=1e-5)


def test_no_four_words_stand_twice():
    loop = "a b c d a b c d a"
    again = TableWriter([[loop]], [[1.0]], 1)
    assert texts_of(decode(again, asked(1), GREEDY)) == [loop]
    found = texts_of(decode(again, asked(1), dataclasses.replace(GREEDY, no_repeat=4)))[0].split()
    assert found[:7] == loop.split()[:7]
    runs = list(itertools.pairwise(itertools.pairwise(itertools.pairwise(found))))
    assert len(runs) == len(set(runs))
    # What was asked for may be said again.
    given = decode(again, asked(1, ["a b c d"]), dataclasses.replace(GREEDY, no_repeat=4))
    assert texts_of(given) == [loop]


@pytest.mark.parametrize(
    "method", ["greedy", *(pytest.param(one, marks=pytest.mark.slow) for one in ("beam", "nucleus"))]
)
def test_whatever_a_model_says_words_of_valid_utf8_are_written(method):
    config = dataclasses.replace(GREEDY, method=method, no_repeat=4)
    seeds = 24
    found = decode(NoisyWriter(5), asked(seeds, [f"clip {n}" for n in range(seeds)], length=9), config)
    texts = texts_of(found)  # raises where it is not
    assert len(set(texts)) > seeds // 2
    assert any(ord(letter) > 0x7FF for text in texts for letter in text)
    # END is rare: most captions come to their budget, and say so.
    assert not np.asarray(found.done_C).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "best"}, "greedy, beam, nucleus"),
        ({"beams": 0}, "beams 0 must be 1 to 258"),
        ({"top_p": 0.0}, "top_p 0 must be over 0"),
        ({"temperature": 0.0}, "temperature 0 must be over 0"),
        ({"no_repeat": 1}, "no_repeat 1 must be 0, or 2 or more"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(GREEDY, **change)
