"""The captioner over packed rows: a segment is itself alone, nothing is foretold by itself, steps are the whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model, init_params, merge_model
from sora_jax.data.packing.packs import PackLayout, stack_rows
from sora_jax.data.packing.plan import Budget
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.models import caption_tokens
from sora_jax.models.captioner import Captioner, CaptionerConfig

CONFIG = CaptionerConfig(
    width=16,
    depth=1,
    heads=2,
    mlp_width=16,
    unimodal=1,
    multimodal=1,
    encoder="clip",
    generative_queries=0,
    local_width=8,
    embedding=8,
    rope_theta=100.0,
    attention="auto",
    exchange="gather",
    remat="none",
)
S, K = 3, 12
CLIPS = [[((2, 2, 2), "a red circle"), ((1, 2, 2), "blue"), ((0, 0, 0), "expand: terse")], [((3, 1, 2), "wandering")]]


def make_pack(rows):
    """Returns a pack of rows of (grid, caption); a grid of nothing is a text alone."""
    layout = PackLayout(
        budget=Budget(tokens=16, text_tokens=K, segments=S),
        patch=(1, 1, 1),
        channels=3,
        temporal_stride=4,
        time_rate=2.0,
        tokenizer=BYTE_TOKENIZER,
    )
    made = []
    for clips in rows:
        row = layout.row()
        for number, (grid, caption) in enumerate(clips):
            tokens = np.random.default_rng(len(caption)).normal(size=(np.prod(grid), 3)).astype(np.float32)
            text = BYTE_TOKENIZER.encode([caption])[0]
            row.put(sample=number, grid=grid, fps=8.0, text=text, tokens_LP=tokens)
        made.append(row)
    return {name: jnp.asarray(value) for name, value in stack_rows(made).items()}


def build(key, config=CONFIG):
    return Captioner(config, patch_width=3, rngs=Rngs(key))


@functools.cache
def params_of(config):
    """Returns parameters whose residual branches are large enough to matter."""
    initial = jax.jit(lambda key: init_params(functools.partial(build, config=config), key))(jax.random.key(0))
    rng = np.random.default_rng(1)
    return {name: initial[name] + 0.1 * rng.normal(size=initial[name].shape) for name in sorted(initial)}


@functools.partial(jax.jit, static_argnames="config")
def _everything(params, pack, config):
    model = merge_model(abstract_model(functools.partial(build, config=config))[0], params)
    texts = caption_tokens.with_end(pack, S)
    features = model.encode(pack, jnp.float32)
    read = model.read(texts, S, jnp.float32)
    return features, read, model.score(texts, read.states_BKD, features), texts


def everything(pack, config=CONFIG):
    return _everything(params_of(config), pack, config)


PACK = make_pack(CLIPS)


def of_segment(found, row, segment):
    """Returns (clip embedding, text embedding, log-probabilities) of one segment."""
    features, read, scores, texts = found
    mine = np.asarray(texts.segment_BK[row]) == segment
    return [
        np.asarray(x)
        for x in (
            features.embedding_BSE[row, segment - 1],
            read.embedding_BSE[row, segment - 1],
            scores.log_probability_BKQ[row][mine],
        )
    ]


def test_captions_get_an_end_and_keep_their_places():
    texts = caption_tokens.with_end(PACK, S)
    np.testing.assert_array_equal(texts.segment_BK[0], [1] * 5 + [2] * 3 + [3] * 4 + [0] * 3)
    np.testing.assert_array_equal(texts.position_BK[0], [*range(5), *range(3), *range(4), 0, 0, 0])
    ends = np.flatnonzero(np.asarray(caption_tokens.is_end(texts.text_BKQ))[0])
    np.testing.assert_array_equal(ends, [4, 7, 11])
    asked = np.asarray(caption_tokens.asked_slots(texts.text_BKQ))[0]
    assert asked[1].tolist() == [True] * 2 + [False] * 6  # "a", and that it ends there
    assert asked[4].tolist() == [True] + [False] * 7


def test_equal_captions_have_equal_digests_and_others_not():
    captions = ["a red circle", "a circle red", "a red circl", "ared circle", "a red circle", ""]
    digests = []
    for caption in captions:
        texts = caption_tokens.with_end(make_pack([[((1, 1, 1), "x y"), ((1, 1, 1), caption)]]), S)
        digests.append(int(caption_tokens.digest_captions(texts, S)[0, 1]))
    assert digests[0] == digests[4]
    assert len(set(digests)) == 5


CASCADE = dataclasses.replace(CONFIG, generative_queries=2, encoder="frame")


@pytest.mark.parametrize("config", [CONFIG, pytest.param(CASCADE, marks=pytest.mark.slow)])
def test_a_segment_in_a_row_is_the_segment_alone(config):
    found = everything(PACK, config)
    for row, clips in enumerate(CLIPS):
        for number, clip in enumerate(clips, 1):
            alone = everything(make_pack([[clip], []]), config)
            parts = zip(of_segment(found, row, number), of_segment(alone, 0, 1), strict=True)
            for index, (together, expected) in enumerate(parts):
                if index or np.prod(clip[0]):
                    np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-5)


def test_no_symbol_is_foretold_by_itself_or_by_what_follows():
    before = everything(PACK)
    changed = {**PACK, "text_BKQ": PACK["text_BKQ"].at[0, 2, 1].add(3)}  # the second byte of "red"
    after = everything(changed)
    was, now = (np.asarray(found[2].log_probability_BKQ)[0] for found in (before, after))
    np.testing.assert_array_equal(now[:2], was[:2])
    np.testing.assert_array_equal(now[2, 0], was[2, 0])
    assert (now[2, 1:4] != was[2, 1:4]).all()
    assert now[3, 0] != was[3, 0]
    np.testing.assert_array_equal(now[5:], was[5:])


def test_what_is_written_is_a_distribution_and_follows_the_clip():
    found = everything(PACK)
    assert (np.asarray(found[2].log_probability_BKQ) <= 0).all()
    other = everything({**PACK, "tokens_BLP": PACK["tokens_BLP"].at[0, 0].add(1.0)})
    was, now = (np.asarray(x[2].log_probability_BKQ)[0] for x in (found, other))
    assert (now[1] != was[1]).any()
    np.testing.assert_array_equal(now[5:], was[5:])
    np.testing.assert_allclose(np.linalg.norm(found[0].embedding_BSE[0, 0]), 1.0, rtol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, pytest.param(CASCADE, marks=pytest.mark.slow)])
def test_a_clip_backwards_is_another_clip(config):
    order = np.r_[4:8, 0:4, 8:16]  # the two frames of the first clip
    backwards = {**PACK, "tokens_BLP": PACK["tokens_BLP"][:, order]}
    was, now = (np.asarray(everything(pack, config)[0].embedding_BSE)[0, 0] for pack in (PACK, backwards))
    assert np.abs(now - was).max() > 1e-3


@pytest.mark.slow
def test_steps_with_kept_keys_give_the_numbers_of_the_whole():
    _, _, scores, texts = everything(PACK)
    model = merge_model(abstract_model(build)[0], params_of(CONFIG))
    features = model.encode(PACK, jnp.float32)
    place = np.asarray(texts.position_BK), np.asarray(texts.segment_BK)
    segment_BR = jnp.asarray([[3, 1, 2], [1, 1, 1]], jnp.int32)
    tokens = np.zeros((5, 2, 3, 8), np.int32)
    wanted = np.full((5, 2, 3, 8), np.nan)
    for row, text, position in np.ndindex(2, 3, 5):
        at = np.flatnonzero((place[0][row] == position) & (place[1][row] == segment_BR[row, text]))
        if len(at):
            tokens[position, row, text] = texts.text_BKQ[row, at[0]]
            asked = scores.asked_BKQ[row, at[0]]
            wanted[position, row, text] = np.where(asked, scores.log_probability_BKQ[row, at[0]], np.nan)

    @jax.jit
    def step(writing, token, following, position):
        state, writing = model.step(writing, token, segment_BR, position)
        spelling, found = model.speller.begin(state.reshape(6, -1)), []
        for slot in range(8):
            logits, spelling = model.speller.step(spelling, following.reshape(6, 8)[:, max(slot - 1, 0)], slot)
            found.append(jax.nn.log_softmax(logits)[jnp.arange(6), following.reshape(6, 8)[:, slot]])
        return jnp.stack(found, axis=-1).reshape(2, 3, 8), writing

    writing = model.begin(features, texts=3, max_tokens=6)
    for position in range(4):
        found, writing = step(writing, tokens[position], tokens[position + 1], jnp.int32(position))
        said = ~np.isnan(wanted[position + 1])
        np.testing.assert_allclose(np.asarray(found)[said], wanted[position + 1][said], rtol=1e-4, atol=1e-5)
    assert (~np.isnan(wanted[1:5])).sum() > 20
    swapped = writing.taken(jnp.asarray([[1, 0, 2], [2, 2, 2]]))
    np.testing.assert_array_equal(swapped.unimodal[0][:, 0, 0], writing.unimodal[0][:, 0, 1])
    np.testing.assert_array_equal(swapped.multimodal[1][:, 1, 0], writing.multimodal[1][:, 1, 2])


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_a_mesh_changes_no_number(exchange):
    config = dataclasses.replace(CONFIG, exchange=exchange)
    expected = everything(PACK, config)
    with jax.set_mesh(make_mesh(MeshConfig(data=1, fsdp=2, sequence=2, tensor=2))):
        found = everything(PACK, config)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": 3}, "width 16 over 3 heads is not an even head width; nearest: width 18"),
        ({"unimodal": 0}, "unimodal 0 and multimodal 1 must each be at least 1"),
        ({"encoder": "row"}, "encoder 'row' is none of clip, frame"),
        ({"remat": "some"}, "remat 'some' is none of"),
    ],
)
def test_shapes_that_are_none_are_refused(change, said):
    with pytest.raises(UserError) as caught:
        dataclasses.replace(CONFIG, **change)
    assert said in str(caught.value)
