"""The diffusion objective: what carries loss, what is told to the model, and what never leaks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.data.packing.packs import PackLayout, stack_rows
from sora_jax.data.packing.plan import Budget
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.diffusion import known
from sora_jax.models.text_to_video import extents, without_caption
from sora_jax.models.transformer import Prediction
from sora_jax.objectives.diffusion import DiffusionConfig, make_objective
from tests import small

LAYOUT = PackLayout(
    budget=Budget(tokens=20, text_tokens=12, segments=4),
    patch=(1, 1, 1),
    channels=3,
    temporal_stride=4,
    time_rate=2.0,
    tokenizer=BYTE_TOKENIZER,
)
ROWS = (
    (((2, 2, 2), 8.0, "a red circle"), ((1, 2, 3), 8.0, "blue")),
    (((3, 1, 2), 4.0, "still"), ((1, 1, 1), 6.0, ""), ((2, 2, 1), 6.0, "moves right")),
)
KEY = jax.random.key(3)


def make_pack(kept=slice(None)):
    rng, rows = np.random.default_rng(0), []
    for clips in ROWS:
        row = LAYOUT.row()
        for number, (grid, fps, caption) in enumerate(clips):
            tokens = rng.normal(size=(np.prod(grid), 3)).astype(np.float32)
            row.put(
                sample=number, grid=grid, fps=fps, text=BYTE_TOKENIZER.encode([caption])[0], tokens_LP=tokens, kept=kept
            )
        rows.append(row)
    return {name: jnp.asarray(value) for name, value in stack_rows(rows).items()}


PACK = make_pack()
THIN = make_pack(kept=slice(None, None, 2))  # token drop took every second token


def shares(known_share):
    families = {"none": 1 - known_share, "first": known_share, "last": 0, "ends": 0, "random_frames": 0, "region": 0}
    return small.known_config(**families, max_level=0.05)


def config(*, prediction="clean", dropout=0.0):
    return DiffusionConfig(
        path=small.path_config(prediction=prediction, loss_space="velocity", weighting="flat", min_sigma=0.05),
        noise=small.noise_config(),
        caption_dropout=dropout,
        loss_bands=None,
    )


class Stub:
    """Predicts by `answer(noisy tokens, sigma of each token)`, and remembers what it was told."""

    def __init__(self, answer):
        self.answer = answer

    def encode_text(self, pack, dtype):
        self.encoded = pack
        return jnp.zeros((*pack["text_segment_BK"].shape, 2), dtype)

    def predict(self, tokens_BLP, pack, *, levels_BG, level_BL, text_BKE, text_segment_BK):
        self.known_BL = level_BL >= levels_BG.shape[1] // 2
        self.sigma_BL = known.token_level(levels_BG, level_BL)
        self.text_segment_BK = text_segment_BK
        return Prediction(self.answer(tokens_BLP, self.sigma_BL[..., None]), tokens_BLP)


def run(answer, key=KEY, *, known_share=0.0, **options):
    stub = Stub(answer)
    loss, metrics = make_objective(config(**options), shares(known_share), dtype=jnp.float32)(stub, PACK, key)
    return stub, loss, metrics


def perfect(prediction):
    """Returns the answer that knows the clean tokens."""
    clean = PACK["tokens_BLP"]

    def answer(x, sigma):
        noise = (x - (1 - sigma) * clean) / jnp.maximum(sigma, 1e-6)
        return {"clean": clean, "velocity": noise - clean, "noise": noise}[prediction]

    return answer


@pytest.mark.parametrize("prediction", ["clean", "velocity", "noise"])
@pytest.mark.parametrize("known_share", [0.0, 0.5])
def test_a_perfect_prediction_has_no_loss_and_a_wrong_one_has(prediction, known_share):
    _, loss, _ = run(perfect(prediction), prediction=prediction, known_share=known_share)
    assert loss.value() < 1e-6
    _, loss, _ = run(lambda x, sigma: perfect(prediction)(x, sigma) + 0.1, prediction=prediction)
    assert loss.value() > 1e-3


@pytest.mark.parametrize("known_share", [0.0, 1.0])
def test_only_tokens_to_be_predicted_carry_loss(known_share):
    real_BL = np.asarray(PACK["segment_BL"] > 0)

    def total(delta):
        stub, loss, _ = run(lambda x, sigma: PACK["tokens_BLP"] + delta, known_share=known_share)
        return loss.sum, (stub.known_BL, loss.weight)

    gradient, (known_BL, weight) = jax.grad(total, has_aux=True)(jnp.full(PACK["tokens_BLP"].shape, 0.1))
    carries_BL = np.abs(np.asarray(gradient)).max(axis=-1) > 0
    np.testing.assert_array_equal(carries_BL, real_BL & ~np.asarray(known_BL))
    assert weight == carries_BL.sum()
    # First frames of clips of several frames are given; an image has none to give.
    assert (real_BL & np.asarray(known_BL)).sum() == (0 if known_share == 0 else pytest.approx(8, abs=4))


def test_the_loss_is_the_mean_over_tokens_of_the_path():
    stub, loss, metrics = run(lambda x, sigma: PACK["tokens_BLP"] + 0.3)
    real_BL = np.asarray(PACK["segment_BL"]) > 0
    per_token = (0.3 / np.maximum(np.asarray(stub.sigma_BL), 0.05)) ** 2
    np.testing.assert_allclose(loss.value(), per_token[real_BL].mean(), rtol=1e-5)
    assert metrics["fill"].value() == real_BL.sum() / real_BL.size


def test_the_model_sees_noise_in_the_measure_it_is_told():
    seen = {}

    def answer(x, sigma):
        seen["noise"] = (x - (1 - sigma) * PACK["tokens_BLP"]) / sigma
        return x

    stub, _, _ = run(answer)
    sigma_BL, segment_BL = np.asarray(stub.sigma_BL), np.asarray(PACK["segment_BL"])
    real = segment_BL > 0
    assert 0 < sigma_BL[real].min() < sigma_BL[real].max() <= 1
    noise = np.asarray(seen["noise"])[real]
    assert abs(noise.std() - 1) < 0.2
    for row in range(2):
        for segment in range(1, 4):
            assert len(np.unique(sigma_BL[row, segment_BL[row] == segment])) <= 1, "one level a segment"


def test_known_tokens_are_nearly_clean():
    stub, _, _ = run(perfect("clean"), known_share=1.0)
    known_BL = np.asarray(stub.known_BL)
    assert known_BL.any()
    assert np.asarray(stub.sigma_BL)[known_BL].max() <= 0.05


def test_a_dropped_caption_keeps_its_start_token_alone():
    dropped = jnp.array([[True, False, False, False], [False, True, True, False]])
    visible = np.asarray(without_caption(PACK, dropped)["text_segment_BK"])
    segment, position = np.asarray(PACK["text_segment_BK"]), np.asarray(PACK["text_position_BK"])
    hidden = np.zeros_like(segment, bool)
    hidden[0] = (segment[0] == 1) & (position[0] > 0)
    hidden[1] = (segment[1] >= 2) & (position[1] > 0)
    np.testing.assert_array_equal(visible, np.where(hidden, 0, segment))
    assert hidden.sum() == 3 + 2
    assert set(np.unique(visible[0])) == {0, 1, 2}, "each segment still sees a start"


def test_captions_are_dropped_by_their_share_and_encoded_as_they_are_seen():
    counts = []
    for seed in range(30):
        stub, _, _ = run(perfect("clean"), jax.random.key(seed), dropout=0.5)
        np.testing.assert_array_equal(stub.encoded["text_segment_BK"], stub.text_segment_BK)
        words = np.asarray(PACK["text_position_BK"] > 0)
        counts.append((np.asarray(stub.text_segment_BK)[words] == 0).mean())
    assert 0.3 < np.mean(counts) < 0.7
    stub, _, _ = run(perfect("clean"))
    np.testing.assert_array_equal(stub.text_segment_BK, PACK["text_segment_BK"])


@functools.cache
def generator():
    """Returns the structure and random parameters of a real generator."""
    structure, shapes, _ = abstract_model(small.generator(3))
    return structure, small.random_params(shapes)


def loss(params, text_BKQ, *, dropout):
    objective = make_objective(config(dropout=dropout), shares(0.0), dtype=jnp.float32)
    model = merge_model(generator()[0], params)
    return objective(model, PACK | {"text_BKQ": text_BKQ}, KEY)[0].value()


def test_nothing_of_a_dropped_caption_leaks():
    other_BKQ = jnp.where(PACK["text_BKQ"] > 0, 1 + PACK["text_BKQ"] * 7 % 256, 0)
    params = generator()[1]
    without = jax.jit(jax.value_and_grad(functools.partial(loss, dropout=0.9999)))
    value, gradient = without(params, PACK["text_BKQ"])
    same, same_gradient = without(params, other_BKQ)
    assert value == same
    for name in gradient:
        np.testing.assert_array_equal(gradient[name], same_gradient[name], err_msg=name)
    assert not np.any(gradient["text.table"]), "no byte is read"
    assert np.any(gradient["text.start"])
    given = jax.jit(functools.partial(loss, dropout=0.0))
    assert given(params, PACK["text_BKQ"]) != given(params, other_BKQ)


def left_in_thin():
    """Returns which tokens of PACK are also in THIN."""
    segment_BL, left_BL = np.asarray(PACK["segment_BL"]), np.zeros(PACK["segment_BL"].shape, bool)
    for row, segments in enumerate(segment_BL):
        for segment in set(segments) - {0}:
            left_BL[row, np.flatnonzero(segments == segment)[::2]] = True
    return left_BL


def test_what_token_drop_leaves_is_predicted_as_if_the_rest_were_padding():
    left_BL = left_in_thin()
    as_padding = PACK | {"segment_BL": jnp.where(left_BL, PACK["segment_BL"], 0)}
    model = merge_model(*generator())
    levels_BG = jax.random.uniform(KEY, (2, 8))

    @jax.jit
    def predict(pack):
        level_BL = known.level_index(pack["segment_BL"], jnp.zeros_like(pack["segment_BL"], bool), num_segments=4)
        text_BKE = model.encode_text(pack, jnp.float32)
        told = {"levels_BG": levels_BG, "level_BL": level_BL, "text_BKE": text_BKE}
        return model.predict(pack["tokens_BLP"], pack, text_segment_BK=pack["text_segment_BK"], **told).tokens_BLP

    thin, padded = np.asarray(predict(THIN)), np.asarray(predict(as_padding))
    for row, count in enumerate(left_BL.sum(axis=1)):
        np.testing.assert_array_equal(THIN["tokens_BLP"][row, :count], PACK["tokens_BLP"][row, left_BL[row]])
        np.testing.assert_allclose(thin[row, :count], padded[row, left_BL[row]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["first", "last", "ends", "random_frames", "region"])
def test_what_is_known_of_a_clip_does_not_depend_on_token_drop(family):
    others = dict.fromkeys(("none", "first", "last", "ends", "random_frames", "region"), 0.0)
    pattern = known.draw_pattern(KEY, PACK["grid_BS3"], small.known_config(**others | {family: 1.0}))

    def known_BL(pack):
        names = ("position_BL3", "segment_BL", "grid_BS3", "time_step_BS")
        return np.asarray(known.known_tokens(pattern, **{name: pack[name] for name in names}))

    for row, left_L in enumerate(left_in_thin()):
        np.testing.assert_array_equal(known_BL(THIN)[row, : left_L.sum()], known_BL(PACK)[row, left_L])


@pytest.mark.parametrize("pack", [PACK, THIN])
def test_the_noise_of_a_segment_goes_by_the_tokens_that_are_there(pack):
    noise = small.noise_config(std=1e-6, shift_base_tokens=4.0, uniform_share=0.0)
    stub = Stub(perfect("clean"))
    objective = make_objective(dataclasses.replace(config(), noise=noise), shares(0.0), dtype=jnp.float32)
    loss, metrics = objective(stub, pack, KEY)
    segment_BL = np.asarray(pack["segment_BL"])
    for row, segments in enumerate(segment_BL):
        for segment in set(segments) - {0}:
            odds = np.sqrt((segments == segment).sum() / 4.0)
            np.testing.assert_allclose(
                np.asarray(stub.sigma_BL)[row, segments == segment], odds / (1 + odds), rtol=1e-4
            )
    assert loss.weight == (segment_BL > 0).sum()
    assert metrics["fill"].value() == (segment_BL > 0).mean()


def test_the_loss_of_bands_of_noise_adds_up_to_the_loss():
    banded = dataclasses.replace(config(), loss_bands=(0.3, 0.5, 0.9))
    objective = make_objective(banded, shares(0.0), dtype=jnp.float32, noise_range=(0.4, 1.0))
    stub = Stub(lambda tokens_BLP, sigma_BL1: 0 * tokens_BLP + sigma_BL1)
    loss, metrics = objective(stub, PACK, KEY)
    bands = {name: mean for name, mean in metrics.items() if name.startswith("loss_")}
    assert list(bands) == ["loss_0.4_0.5", "loss_0.5_0.9", "loss_0.9_1"], "none is outside of what is drawn"
    np.testing.assert_allclose(np.sum(list(bands.values()), axis=0), loss, rtol=1e-5)
    inside = np.asarray((stub.sigma_BL >= 0.5) & (stub.sigma_BL < 0.9) & (PACK["segment_BL"] > 0))
    assert bands["loss_0.5_0.9"].weight == inside.sum() > 0


@pytest.mark.parametrize("edges", [(0.0, 0.5), (0.6, 0.5), (1.0,)])
def test_bands_that_do_not_rise_between_0_and_1_are_refused(edges):
    with pytest.raises(UserError, match="loss_bands"):
        dataclasses.replace(config(), loss_bands=edges)


def test_the_loss_and_gradient_of_a_pack_with_token_drop_are_finite():
    objective = make_objective(config(dropout=0.1), shares(0.5), dtype=jnp.float32)
    structure, params = generator()
    compute = jax.jit(jax.value_and_grad(lambda p: objective(merge_model(structure, p), THIN, KEY)[0].value()))
    value, gradient = compute(params)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient.values())


def test_extents_are_the_last_positions_of_each_segment():
    extent_BL3 = np.asarray(extents(PACK))
    segment_BL, position_BL3 = np.asarray(PACK["segment_BL"]), np.asarray(PACK["position_BL3"])
    for row in range(2):
        for segment in set(segment_BL[row]) - {0}:
            mine = segment_BL[row] == segment
            last = position_BL3[row, mine].max(axis=0)
            np.testing.assert_allclose(
                extent_BL3[row, mine], np.broadcast_to(np.where(last > 0, last, 1), (mine.sum(), 3))
            )


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_a_share_of_dropped_captions_that_cannot_be_is_refused(share):
    with pytest.raises(UserError, match="outside"):
        dataclasses.replace(config(), caption_dropout=share)
