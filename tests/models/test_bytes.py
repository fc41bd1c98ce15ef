"""The byte encoder: captions packed in a row are captions alone, and spelling and order matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model, init_params, merge_model
from sora_jax.models.text import bytes as bytes_encoder
from sora_jax.models.text.bytes import NUM_BYTES, ByteEncoder
from sora_jax.models.text.encoder import TextConfig

K, Q, WIDTH = 14, 4, 16


def build(key):
    return ByteEncoder(
        TextConfig(encoder="bytes", weights=None, width=WIDTH, depth=2, heads=2, max_tokens=24),
        bytes_per_token=Q,
        remat="none",
        rngs=Rngs(key),
    )


def encoded(structure, params, text_BKQ, segment_BK, position_BK, dtype):
    pack = {"text_BKQ": text_BKQ, "text_position_BK": position_BK}
    return merge_model(structure, params)(pack, segment_BK, jnp.dtype(dtype))


def encode_in(dtype):
    @jax.jit
    def encode(params, text_BKQ, segment_BK, position_BK):
        structure, _, _ = abstract_model(build)
        return encoded(structure, params, text_BKQ, segment_BK, position_BK, dtype)

    return encode


encode = encode_in(jnp.float32)


@pytest.fixture(scope="module")
def params():
    """Returns parameters whose residual branches are large enough to matter."""
    initial = jax.jit(lambda key: init_params(build, key))(jax.random.key(0))
    rng = np.random.default_rng(1)
    noise = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in sorted(initial.items())}
    return {name: value + 0.2 * noise[name] for name, value in initial.items()}


def pieces(*words):
    """Returns caption_KQ of a start token and words of at most Q bytes."""
    caption_KQ = np.zeros((1 + len(words), Q), np.int32)
    for i, word in enumerate(words):
        caption_KQ[i + 1, : len(word)] = [byte + 1 for byte in word.encode()]
    return caption_KQ


def row_of(captions):
    text_KQ, segment_K, position_K = np.zeros((K, Q), np.int32), np.zeros(K, np.int32), np.zeros(K, np.int32)
    start, places = 0, []
    for slot, caption_KQ in enumerate(captions):
        here = slice(start, start + len(caption_KQ))
        text_KQ[here], segment_K[here], position_K[here] = caption_KQ, slot + 1, np.arange(len(caption_KQ))
        start = here.stop
        places.append(here)
    return (text_KQ[None], segment_K[None], position_K[None]), places


def encode_one(params, *words):
    arrays, (here,) = row_of([pieces(*words)])
    return np.asarray(encode(params, *arrays))[0, here]


word = st.text("abcXYZ019", min_size=1, max_size=Q)


@settings(deadline=None, max_examples=15)
@given(captions=st.lists(st.lists(word, max_size=3), min_size=1, max_size=3))
def test_packed_captions_are_captions_alone(params, captions):
    arrays, places = row_of([pieces(*words) for words in captions])
    packed_KD = np.asarray(encode(params, *arrays))[0]
    for here, words in zip(places, captions, strict=True):
        np.testing.assert_allclose(packed_KD[here], encode_one(params, *words), rtol=0, atol=1e-5)


def test_padding_has_no_influence(params):
    arrays, (here,) = row_of([pieces("red", "ball")])
    text_BKQ = arrays[0].copy()
    text_BKQ[0, here.stop :] = 77
    before, after = encode(params, *arrays), encode(params, text_BKQ, *arrays[1:])
    np.testing.assert_array_equal(before[0, here], after[0, here])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab",), ("ba",)),
        (("ab", "c"), ("a", "bc")),
        (("red", "on", "blue"), ("blue", "on", "red")),
        (("\x00",), ("\x01",)),
    ],
)
def test_spelling_and_order_matter(params, one, other):
    difference = encode_one(params, *one).sum(axis=0) - encode_one(params, *other).sum(axis=0)
    assert np.abs(difference).max() > 1e-2


def test_an_empty_caption_is_its_start_token(params):
    found = encode_one(params)
    assert found.shape == (1, WIDTH)
    shifted = {**params, "start": params["start"] + jnp.linspace(-1, 1, WIDTH)}
    assert np.abs(encode_one(shifted) - found).max() > 1e-2


def test_the_highest_byte_has_a_row_of_its_own(params):
    top = pieces("a")
    top[1, 0] = NUM_BYTES - 1  # byte 255
    arrays, (here,) = row_of([top])
    before = np.asarray(encode(params, *arrays))[0, here]
    table = params["table"].at[0, NUM_BYTES - 1].add(1.0)
    after = np.asarray(encode({**params, "table": table}, *arrays))[0, here]
    assert np.isfinite(before).all()
    assert np.abs(after - before).max() > 1e-2


def test_bfloat16_stays_near_float32(params):
    arrays, (here,) = row_of([pieces("red", "ball")])
    found = encode_in(jnp.bfloat16)(params, *arrays)
    assert found.dtype == jnp.bfloat16
    expected = np.asarray(encode(params, *arrays))[0, here]
    assert np.abs(np.asarray(found, np.float32)[0, here] - expected).max() < 0.1 * np.abs(expected).max()


def test_accelerators_spell_by_a_product_and_get_the_same(params, monkeypatch):
    arrays, _ = row_of([pieces("red", "cat"), pieces("z0")])
    structure, _, _ = abstract_model(build)

    def loss(params):
        features = encoded(structure, params, *arrays, jnp.float32)
        return jnp.sum(jnp.sin(features)), features

    def both(params):
        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, expected), gradient = jax.jit(both)(params)
    monkeypatch.setattr(bytes_encoder, "current_platform", lambda: "tpu")
    text = str(jax.make_jaxpr(lambda params: both(params))(params))
    (_, found), other = jax.jit(lambda params: both(params))(params)
    assert f"{Q},{NUM_BYTES}]" in text, "there are ones for every slot and byte"
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for name, value in gradient.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
