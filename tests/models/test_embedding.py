"""The embedding of a clip, which the transformer may be told where it is told the pooled text."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.models.conditions import ConditionEmbedder
from sora_jax.models.interop.wan_shape import inexpressible
from sora_jax.models.place import Place
from sora_jax.models.text_to_video import without_embedding
from tests import small

E, LEVEL = 6, 0.5
TOLD = {"embedding": E, "depth": 1}


def pack(*, has=(1, 0), embedding_BSE=None):
    """Returns a row of two segments with a text each."""
    rng = np.random.default_rng(0)
    return {
        "tokens_BLP": rng.normal(size=(1, 6, 3)).astype(np.float32),
        "position_BL3": rng.integers(0, 2, size=(1, 6, 3)).astype(np.float32),
        "segment_BL": np.array([[1, 1, 1, 2, 2, 0]], np.int32),
        "grid_BS3": np.array([[(3, 1, 1), (2, 1, 1)]], np.int32),
        "time_step_BS": np.ones((1, 2), np.float32),
        "text_BKQ": np.zeros((1, 4, 8), np.int32) + 97,
        "text_segment_BK": np.array([[1, 1, 2, 2]], np.int32),
        "text_position_BK": np.array([[0, 1, 0, 1]], np.int32),
        "embedding_BSE": rng.normal(size=(1, 2, E)).astype(np.float32) if embedding_BSE is None else embedding_BSE,
        "has_embedding_BS": np.array([has], np.int32),
    }


@functools.cache
def predictor(**changes):
    """Returns (the jitted prediction of parameters and a pack, random parameters)."""
    structure, shapes, _ = abstract_model(small.generator(3, **dict(changes)))

    def predict(params, pack):
        model = merge_model(structure, params)
        return model.predict(
            pack["tokens_BLP"],
            pack,
            levels_BG=jnp.full((1, 4), LEVEL),
            level_BL=jnp.maximum(pack["segment_BL"] - 1, 0),
            text_BKE=model.encode_text(pack, jnp.dtype(jnp.float32)),
            text_segment_BK=pack["text_segment_BK"],
        ).tokens_BLP

    return jax.jit(predict), small.random_params(shapes)


def test_a_fresh_model_begins_as_one_that_is_told_nothing():
    parts = {
        "modulation": lambda **more: ConditionEmbedder(
            4, frequency_dim=4, text_dim=3, pooled_text=True, image_dim=None, image_positions=None, **more
        ),
        "place": lambda **more: Place(4, base_width=4, text_dim=3, **more),
    }
    for name, build in parts.items():
        rngs, plain = nnx.Rngs(0), nnx.Rngs(0)
        told, silent = build(embedding=E, rngs=rngs), build(rngs=plain)
        assert silent.embedding is None
        assert not np.asarray(told.embedding.kernel[...]).any(), name
        assert told.embedding.kernel[...].shape == (E, 4)
        assert rngs.params() == plain.params(), "what is drawn after it is what it was"


def test_it_changes_its_own_segment_alone_and_only_where_there_is_one():
    predict, params = predictor(**TOLD)
    nothing = np.asarray(predict(params, without_embedding(pack())))
    told = np.asarray(predict(params, pack()))
    assert np.abs(told - nothing)[0, :3].min(axis=-1).max() > 1e-2
    np.testing.assert_array_equal(told[0, 3:5], nothing[0, 3:5])
    other = pack()["embedding_BSE"].copy()
    other[0, 1] = 5.0
    np.testing.assert_array_equal(np.asarray(predict(params, pack(embedding_BSE=other)))[0, :5], told[0, :5])


def test_it_enters_where_pooled_text_does():
    """Of zero maps to the modulation what is left is what enters the tokens' places, and the other way round."""
    predict, params = predictor(**TOLD)
    for silenced in ("condition_embedder", "place"):
        muted = {n: jnp.zeros_like(v) if f"{silenced}.embedding" in n else v for n, v in params.items()}
        changed = np.asarray(predict(muted, pack())) - np.asarray(predict(muted, without_embedding(pack())))
        assert np.abs(changed[0, :3]).max() > 1e-2, silenced


def test_programs_that_read_wans_weights_do_not_know_it():
    said = inexpressible(dataclasses.replace(small.TRANSFORMER, embedding=E))
    assert "embedding is 6, and Wan has no embeddings of clips" in said


@pytest.mark.parametrize("name", ["embedding_BSE", "has_embedding_BS"])
def test_a_pack_without_it_stays_as_it_is(name):
    plain = {key: value for key, value in pack().items() if "embedding" not in key}
    assert without_embedding(plain) is plain
    assert name not in without_embedding(plain)
