"""The transformer over packed rows. The test that matters most: a segment in a row is the segment alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import spec
from sora_jax.core.tree import abstract_model, init_params, merge_model
from sora_jax.data.tokens import BYTES_PER_TOKEN
from sora_jax.diffusion import known
from sora_jax.models import conditions, place
from sora_jax.models.text.bytes import ByteText
from sora_jax.models.text.encoder import TextConfig
from sora_jax.models.text_to_video import TextToVideo, without_caption
from sora_jax.video import shapes
from tests import small

B, L, K, S, P, Q = 2, 40, 16, 3, 6, BYTES_PER_TOKEN
CONFIG = dataclasses.replace(small.TRANSFORMER, width=32, mlp_width=48, frequency_dim=16, time_rate=1.0, remat="dots")


def build(key):
    text = ByteText(TextConfig(encoder="bytes", weights=None, width=16, depth=1, heads=2, max_tokens=24))
    return TextToVideo(CONFIG, text, patch_width=P, rngs=Rngs(key))


@dataclasses.dataclass(frozen=True)
class Segment:
    """One clip of a row; `seed` draws its noisy tokens, its targets and the bytes of its caption."""

    grid: tuple[int, int, int]
    words: int
    seed: int
    sigma: float
    known_sigma: float = 0.0
    known_frames: int = 0
    dropped: bool = False
    time_step: float = 0.5

    @property
    def count(self):
        return shapes.count(self.grid)

    def arrays(self):
        """Returns its part of a row's arrays over tokens and over text tokens."""
        rng = np.random.default_rng(self.seed)
        position_L3 = shapes.positions(self.grid, self.time_step)
        text_KQ = rng.integers(1, 257, size=(1 + self.words, Q)).astype(np.int32)
        text_KQ[0] = 0
        tokens = {
            "tokens_BLP": rng.normal(size=(self.count, P)).astype(np.float32),
            "target_BLP": rng.normal(size=(self.count, P)).astype(np.float32),
            "position_BL3": position_L3,
            "known_BL": np.round(position_L3[:, 0] / self.time_step) < self.known_frames,
        }
        return tokens, {"text_BKQ": text_KQ, "text_position_BK": np.arange(1 + self.words)}


def empty_row(length=L, text_length=K, slots=S):
    return {
        "tokens_BLP": np.zeros((length, P), np.float32),
        "target_BLP": np.zeros((length, P), np.float32),
        "position_BL3": np.zeros((length, 3), np.float32),
        "known_BL": np.zeros(length, bool),
        "segment_BL": np.zeros(length, np.int32),
        "text_BKQ": np.zeros((text_length, Q), np.int32),
        "text_position_BK": np.zeros(text_length, np.int32),
        "text_segment_BK": np.zeros(text_length, np.int32),
        "grid_BS3": np.zeros((slots, 3), np.int32),
        "time_step_BS": np.zeros(slots, np.float32),
        "sigma_BS": np.zeros(slots, np.float32),
        "known_sigma_BS": np.zeros(slots, np.float32),
        "dropped_BS": np.zeros(slots, bool),
    }


def row_of(segments, **sizes):
    """Returns the arrays of a row and the places of its segments."""
    row, places, start, text_start = empty_row(**sizes), [], 0, 0
    for slot, one in enumerate(segments):
        here, there = slice(start, start + one.count), slice(text_start, text_start + 1 + one.words)
        tokens, text = one.arrays()
        for name, value in tokens.items():
            row[name][here] = value
        for name, value in text.items():
            row[name][there] = value
        row["segment_BL"][here] = row["text_segment_BK"][there] = slot + 1
        row["grid_BS3"][slot], row["time_step_BS"][slot] = one.grid, one.time_step
        row["sigma_BS"][slot], row["known_sigma_BS"][slot] = one.sigma, one.known_sigma
        row["dropped_BS"][slot] = one.dropped
        start, text_start = here.stop, there.stop
        places.append(here)
    return row, places


def pack_of(rows):
    """Returns a pack of B rows, the absent ones all padding."""
    rows = [*rows, *[empty_row()] * (B - len(rows))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def predict(model, pack, dtype):
    """Returns prediction_BLP, the way from a pack to the transformer as the objective takes it."""
    levels_BG = known.level_table(pack["sigma_BS"], pack["known_sigma_BS"])
    level_BL = known.level_index(pack["segment_BL"], pack["known_BL"], num_segments=pack["sigma_BS"].shape[1])
    shown = without_caption(pack, pack["dropped_BS"])
    return model.predict(
        pack["tokens_BLP"],
        pack,
        levels_BG=levels_BG,
        level_BL=level_BL,
        text_BKE=model.encode_text(shown, dtype),
        text_segment_BK=shown["text_segment_BK"],
    ).tokens_BLP


def loss_and_prediction(params, pack):
    """Returns (sum over segments of their losses, prediction_BLP); known tokens and padding carry no loss."""
    structure, _, _ = abstract_model(build)
    prediction_BLP = predict(merge_model(structure, params), pack, jnp.dtype(jnp.float32))
    wanted_BL = (pack["segment_BL"] > 0) & ~pack["known_BL"]
    error_BL = jnp.mean(jnp.square(prediction_BLP - pack["target_BLP"]), axis=-1)
    return jnp.sum(jnp.where(wanted_BL, error_BL, 0.0)), prediction_BLP


evaluate = jax.jit(loss_and_prediction)
differentiate = jax.jit(jax.value_and_grad(loss_and_prediction, has_aux=True))


def run(params, pack):
    """Returns (prediction_BLP, gradients by name) as numpy."""
    (_, prediction_BLP), gradients = differentiate(params, pack)
    return np.asarray(prediction_BLP), {name: np.asarray(value) for name, value in gradients.items()}


@pytest.fixture(scope="module")
def initial():
    return jax.jit(lambda key: init_params(build, key))(jax.random.key(0))


@pytest.fixture(scope="module")
def params(initial):
    """Returns parameters away from their zero initialisation, with predictions of unit scale."""
    rng = np.random.default_rng(1)
    return {
        name: value + 0.1 * rng.normal(size=value.shape).astype(np.float32) for name, value in sorted(initial.items())
    }


# A video with a known frame of its own noise level, an image without its caption, a video of another rate.
VIDEO = Segment((3, 2, 3), words=4, seed=0, sigma=0.7, known_sigma=0.05, known_frames=1)
IMAGE = Segment((1, 3, 2), words=3, seed=1, sigma=0.2, dropped=True)
SLOW = Segment((4, 1, 2), words=0, seed=2, sigma=1.0, known_sigma=0.1, known_frames=2, time_step=1.25)
ROW = [VIDEO, IMAGE, SLOW]


def packed_against_alone(params, rows):
    """Returns the largest errors of predictions and of gradients, and the largest gradient."""
    placed = [row_of(segments) for segments in rows]
    pack = pack_of([row for row, _ in placed])
    packed_BLP, packed_gradients = run(params, pack)
    total, error = {name: np.zeros_like(value) for name, value in packed_gradients.items()}, 0.0
    for i, segments in enumerate(rows):
        for here, one in zip(placed[i][1], segments, strict=True):
            row, (there,) = row_of([one])
            alone_BLP, gradients = run(params, pack_of([row]))
            error = max(error, np.abs(packed_BLP[i, here] - alone_BLP[0, there]).max())
            for name, value in gradients.items():
                total[name] += value
    # A step takes the gradient of the mean over the tokens that are predicted, not of their sum.
    predicted = max(1, np.count_nonzero((pack["segment_BL"] > 0) & ~pack["known_BL"]))
    gradient_error = max(np.abs(packed_gradients[name] - total[name]).max() for name in total) / predicted
    return error, gradient_error, max(np.abs(value).max() for value in total.values()) / predicted


@st.composite
def segments(draw, seed):
    frames = draw(st.integers(1, 4))
    grid = (frames, draw(st.integers(1, 2)), draw(st.integers(1, 12 // frames // 2)))
    return Segment(
        grid,
        words=draw(st.integers(0, 4)),
        seed=seed,
        sigma=draw(st.sampled_from([0.0, 0.3, 0.999, 1.0])),
        known_sigma=draw(st.sampled_from([0.0, 0.1])),
        known_frames=draw(st.integers(0, frames)),
        dropped=draw(st.booleans()),
        time_step=draw(st.sampled_from([0.25, 1.0])),
    )


@st.composite
def packed_rows(draw):
    return [[draw(segments(10 * i + j)) for j in range(draw(st.integers(1, S)))] for i in range(B)]


@settings(deadline=None, max_examples=8)
@given(rows=packed_rows())
def test_a_packed_segment_is_the_segment_alone(params, rows):
    error, gradient_error, _ = packed_against_alone(params, rows)
    assert error < 1e-5
    assert gradient_error < 1e-5


def test_a_full_row_is_its_segments_alone(params):
    error, gradient_error, largest = packed_against_alone(params, [ROW, [SLOW, VIDEO]])
    print(f"prediction within {error:.1e}, gradient within {gradient_error:.1e} of at most {largest:.1f}")
    assert error < 1e-5
    assert gradient_error < 1e-5
    prediction_BLP, gradients = run(params, pack_of([row_of(ROW)[0]]))
    assert 0.5 < np.std(prediction_BLP[0, : sum(one.count for one in ROW)]) < 2.0
    for name, value in gradients.items():
        assert np.abs(value).max() > 1e-4, name


def test_a_packed_segment_is_a_row_of_exactly_its_own_size(params):
    row, places = row_of(ROW)
    packed_BLP, _ = run(params, pack_of([row]))
    for here, one in list(zip(places, ROW, strict=True))[:2]:  # each size is a compilation
        alone, _ = row_of([one], length=one.count, text_length=1 + one.words, slots=1)
        _, alone_BLP = evaluate(params, {name: value[None] for name, value in alone.items()})
        np.testing.assert_allclose(packed_BLP[0, here], alone_BLP[0], rtol=0, atol=1e-5)


def test_the_initial_prediction_is_zero_and_can_be_learned(initial):
    prediction_BLP, gradients = run(initial, pack_of([row_of(ROW)[0]]))
    np.testing.assert_array_equal(prediction_BLP, 0)
    assert np.abs(gradients["transformer.proj_out.kernel"]).max() > 1e-3


@pytest.mark.parametrize(
    "change",
    [{"seed": 9}, {"sigma": 0.4}, {"known_sigma": 0.5}, {"known_frames": 2}, {"dropped": True}, {"time_step": 2.0}],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_in_a_segment_stays_in_it(params, change):
    row, places = row_of(ROW)
    changed, _ = row_of([dataclasses.replace(VIDEO, **change), IMAGE, SLOW])
    before_BLP, _ = run(params, pack_of([row, row]))
    after_BLP, _ = run(params, pack_of([changed, row]))
    own = places[0]
    others = row["segment_BL"] > 1  # padding's own output has no meaning
    np.testing.assert_array_equal(after_BLP[0, others], before_BLP[0, others])
    np.testing.assert_array_equal(after_BLP[1], before_BLP[1])
    # Every token of the segment feels it, be it through attention alone.
    assert (np.abs(after_BLP[0, own] - before_BLP[0, own]).max(axis=-1) > 1e-5).all()


def test_the_order_of_a_row_has_no_meaning(params):
    row, _ = row_of(ROW)
    order, text_order = np.random.default_rng(0).permutation(L), np.random.default_rng(1).permutation(K)
    shuffled = {}
    for name, value in row.items():
        axis = name.split("_")[-1]
        shuffled[name] = value[text_order] if axis.startswith("BK") else value
        shuffled[name] = value[order] if axis.startswith("BL") else shuffled[name]
    prediction_BLP, _ = run(params, pack_of([row, shuffled]))
    used = (row["segment_BL"] > 0)[order]
    np.testing.assert_allclose(prediction_BLP[1][used], prediction_BLP[0][order][used], rtol=0, atol=1e-5)


def test_bfloat16_stays_near_float32(params):
    structure, _, _ = abstract_model(build)
    pack = pack_of([row_of(ROW)[0]])
    expected_BLP, _ = run(params, pack)

    @jax.jit
    def half(params, pack):
        return predict(merge_model(structure, params), pack, jnp.dtype(jnp.bfloat16))

    found_BLP = half(params, pack)
    assert found_BLP.dtype == jnp.float32
    used = pack["segment_BL"] > 0
    error = np.asarray(found_BLP)[used] - expected_BLP[used]
    assert 1e-4 < np.std(error) / np.std(expected_BLP[used]) < 0.03


def test_every_parameter_has_a_place_on_a_mesh():
    _, params, axes = abstract_model(build)
    for name, names in axes.items():
        assert len(spec(names)) == params[name].ndim, name


def test_pooled_text_matches_a_loop():
    rng = np.random.default_rng(0)
    text_BKE = rng.normal(size=(2, 7, 3)).astype(np.float32)
    segment_BK = np.array([[1, 1, 3, 1, 0, 0, 3], [2, 2, 2, 2, 0, 0, 0]])
    found = conditions.pool_text(jnp.asarray(text_BKE), jnp.asarray(segment_BK), S)
    for row, slot in np.ndindex(2, S):
        members = text_BKE[row, segment_BK[row] == slot + 1]
        expected = members.sum(axis=0) / np.sqrt(max(len(members), 1))
        np.testing.assert_allclose(found[row, slot], expected, atol=1e-6)


def test_place_features_are_waves_of_the_unit_cube():
    place_BL3 = np.random.default_rng(0).uniform(size=(1, 50, 3)).astype(np.float32)
    features = np.asarray(place.place_features(jnp.asarray(place_BL3)))
    assert features.shape == (1, 50, place.PLACE_DIM)
    half = place.PLACE_DIM // 2
    np.testing.assert_allclose(features[..., :half] ** 2 + features[..., half:] ** 2, 1, atol=1e-5)
    # Any position on any axis is told apart, and no wave is there twice.
    assert np.linalg.matrix_rank(features[0]) == min(50, place.PLACE_DIM)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 30, "heads": 4}, "width 30 over 4 heads is not an even head width; nearest: width 32"),
        ({"width": 32, "heads": 2, "base_width": 24}, "base_width 24 is not a multiple of the head width 16"),
        ({"width": 32, "heads": 4, "base_width": 8, "mlp_width": 50}, "mlp_width 50 .* make it a multiple .* as 64"),
        ({"width": 20, "heads": 4}, "nearest: width"),
        ({"remat": "some"}, "remat 'some' is none of none, dots, attention, full, offload"),
    ],
)
def test_an_impossible_config_ends_in_a_sentence(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_a_wide_transformer_begins_as_the_base_one_does():
    wide = dataclasses.replace(small.TRANSFORMER, width=64, heads=8, mlp_width=64, base_width=16)
    assert wide.at_base_width() == small.TRANSFORMER
    params = init_params(small.generator(4, width=64, heads=8, mlp_width=64, base_width=16), jax.random.key(0))
    for name, deviation in (("modulation", 16**-0.5), ("place.out.kernel", 0.02 / 2), ("blocks.mlp_in.kernel", 1 / 8)):
        assert float(jnp.std(params[f"transformer.{name}"])) == pytest.approx(deviation, rel=0.2), name
