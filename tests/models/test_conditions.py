"""What the transformer is told besides its tokens: text padded with zeros, tokens of images, given channels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.models.conditions import ImageEmbedder, log_text_padding
from sora_jax.models.transformer import Transformer
from sora_jax.nn.flash import NOTHING
from tests import small

L, P, E, PAD_TO = 12, 4, 6, 9
PLAIN = dataclasses.replace(small.TRANSFORMER, pooled_text=False, place_features=False, depth=1)
PADDED = dataclasses.replace(PLAIN, text_pad_to=PAD_TO)
SEGMENT_BL = np.array([[1] * 4 + [2] * 3 + [3] * 4 + [0]], np.int32)
# True text tokens of the segments: some, none, and as many as they are padded to.
TRUE = (4, 0, PAD_TO)


def model(config):
    """Returns the structure and the shapes of the parameters."""
    structure, shapes, _ = abstract_model(lambda key: Transformer(config, patch_width=P, text_dim=E, rngs=Rngs(key)))
    return structure, shapes


def inputs(**changes):
    rng = np.random.default_rng(0)
    return {
        "tokens_BLP": rng.normal(size=(1, L, P)).astype(np.float32),
        "levels_BG": rng.uniform(size=(1, 6)).astype(np.float32),
        "level_BL": np.maximum(SEGMENT_BL - 1, 0),
        "position_BL3": rng.integers(0, 4, size=(1, L, 3)).astype(np.float32),
        "segment_BL": SEGMENT_BL,
        "extent_BL3": np.ones((1, L, 3), np.float32),
        **changes,
    }


def test_padding_is_as_many_zeros_and_so_are_its_gradients():
    structure, shapes = model(PADDED)
    params = small.random_params(shapes)
    text = [np.random.default_rng(n).normal(size=(n, E)).astype(np.float32) for n in TRUE]
    ids = np.repeat([1, 2, 3], TRUE).astype(np.int32)
    short = {"text_BKE": np.concatenate(text)[None], "text_segment_BK": ids[None]}
    zeros = [np.pad(one, ((0, PAD_TO - len(one)), (0, 0))) for one in text]
    full = {
        "text_BKE": np.concatenate(zeros)[None],
        "text_segment_BK": np.repeat([1, 2, 3], PAD_TO).astype(np.int32)[None],
    }

    def graded(structure):
        def loss(params, texts):
            tokens = merge_model(structure, params)(**inputs(**texts)).tokens_BLP
            return jnp.sum(jnp.sin(tokens) * (SEGMENT_BL > 0)[..., None]), tokens

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    plain = graded(model(PLAIN)[0])
    (_, expected), expected_gradients = plain(params, full)
    (_, found), gradients = graded(structure)(params, short)
    used = SEGMENT_BL > 0
    np.testing.assert_allclose(found[used], expected[used], rtol=1e-5, atol=2e-5)
    for name, gradient in gradients.items():
        scale = np.abs(expected_gradients[name]).max()
        np.testing.assert_allclose(gradient, expected_gradients[name], atol=1e-5 * scale, err_msg=name)
    # The zeros say something: without them other numbers come out.
    true = np.concatenate([np.arange(PAD_TO) < n for n in TRUE])
    (_, without), _ = plain(params, {**full, "text_segment_BK": full["text_segment_BK"] * true})
    for segment in (1, 2):
        here = segment == SEGMENT_BL
        assert np.abs(np.asarray(without)[here] - np.asarray(found)[here]).max() > 1e-2
    np.testing.assert_allclose(np.asarray(without)[SEGMENT_BL == 3], np.asarray(found)[SEGMENT_BL == 3], atol=1e-5)


def test_a_segment_lacks_as_many_text_tokens_as_it_has_too_few():
    segment_BK = np.array([[1, 1, 3, 0], [2, 2, 2, 2]])
    found = np.asarray(log_text_padding(jnp.asarray(segment_BK), 3, 4))
    np.testing.assert_allclose(found[0], [NOTHING, np.log(2), np.log(4), np.log(3)], rtol=1e-6)
    np.testing.assert_allclose(found[1], [NOTHING, np.log(4), NOTHING, np.log(4)], rtol=1e-6)


def test_places_of_image_tokens_are_counted_from_the_first_of_their_segment():
    positions = 3
    structure, shapes, _ = abstract_model(
        lambda key: ImageEmbedder(8, image_dim=E, positions=positions, rngs=Rngs(key))
    )
    embedder = jax.jit(merge_model(structure, small.random_params(shapes)).__call__)
    image = np.random.default_rng(1).normal(size=(1, positions, E)).astype(np.float32)
    alone = embedder(jnp.asarray(image), jnp.ones((1, positions), jnp.int32))
    rows = jnp.asarray(np.concatenate([image, image, image[:, :1]], axis=1))
    packed = embedder(rows, jnp.asarray([[1] * positions + [3] * positions + [0]]))
    np.testing.assert_allclose(packed[:, :positions], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(packed[:, positions:-1], alone, rtol=1e-5, atol=1e-6)
    moved = embedder(jnp.asarray(image[:, ::-1]), jnp.ones((1, positions), jnp.int32))[:, ::-1]
    assert np.abs(np.asarray(moved - alone)).max() > 1e-2


def test_what_is_given_and_images_reach_their_own_segment_alone():
    config = dataclasses.replace(PLAIN, given_channels=3, image_dim=5)
    structure, shapes = model(config)
    params = small.random_params(shapes)
    rng = np.random.default_rng(2)
    given, image = rng.normal(size=(1, L, 3)).astype(np.float32), rng.normal(size=(1, 4, 5)).astype(np.float32)
    text = {
        "text_BKE": np.ones((1, 3, E), np.float32),
        "text_segment_BK": np.array([[1, 2, 3]], np.int32),
        "image_segment_BM": np.array([[1, 1, 3, 0]], np.int32),
    }

    @jax.jit
    def predict(given_BLC, image_BME):
        return merge_model(structure, params)(**inputs(**text, given_BLC=given_BLC, image_BME=image_BME)).tokens_BLP

    before = np.asarray(predict(given, image))
    other_given = np.where(SEGMENT_BL[..., None] == 2, 1.0, given)
    other_image = np.where(text["image_segment_BM"][..., None] == 3, 1.0, image)
    for after, segment in ((predict(other_given, image), 2), (predict(given, other_image), 3)):
        change = np.abs(np.asarray(after) - before).max(axis=-1)
        assert change[segment == SEGMENT_BL].min() > 1e-3
        np.testing.assert_array_equal(change[(segment != SEGMENT_BL) & (SEGMENT_BL > 0)], 0)
    with pytest.raises(ValueError, match="given 0 numbers beside the noise, and the transformer takes 3"):
        merge_model(structure, params)(**inputs(**text))


def test_places_of_images_without_images_are_refused():
    with pytest.raises(UserError, match="image_positions 514 without image_dim"):
        dataclasses.replace(PLAIN, image_positions=514)
