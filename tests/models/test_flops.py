"""The count of model FLOPs, against every matrix product in the program and against a slow sum."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.data.tokens import BYTES_PER_TOKEN
from sora_jax.models.flops import NO_WORK, step_flops, transformer_flops, work_of
from sora_jax.models.text.bytes import ByteText
from sora_jax.models.text.encoder import TextConfig
from sora_jax.models.text_to_video import TextToVideo
from sora_jax.models.transformer_config import TransformerConfig
from tests import small

B, L, K, M, P, Q = 2, 24, 6, 7, 5, BYTES_PER_TOKEN
TEXT = ByteText(TextConfig(encoder="bytes", weights=None, width=16, depth=2, heads=2, max_tokens=24))


def config(*, extras: bool) -> TransformerConfig:
    wide = dataclasses.replace(small.TRANSFORMER, width=32, depth=3, mlp_width=48, frequency_dim=16)
    return dataclasses.replace(wide, pooled_text=extras, place_features=extras)


def products(jaxpr) -> float:
    """Returns the FLOPs of the matrix products of a program, those in loops as often as they are done."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            inner_program = getattr(value, "jaxpr", value)
            if hasattr(inner_program, "eqns"):
                total += times * products(inner_program)
    return total


@pytest.mark.parametrize(("extras", "given", "image"), [(False, None, None), (True, None, None), (False, 3, 8)])
def test_full_rows_of_one_segment_cost_every_product_of_the_program(extras, given, image):
    shape = dataclasses.replace(config(extras=extras), given_channels=given, image_dim=image)
    structure, params, _ = abstract_model(lambda key: TextToVideo(shape, TEXT, patch_width=P, rngs=Rngs(key)))
    pack = {
        "position_BL3": np.zeros((B, L, 3), np.float32),
        "segment_BL": np.ones((B, L), np.int32),
        "text_BKQ": np.ones((B, K, Q), np.int32),
        "text_segment_BK": np.ones((B, K), np.int32),
        "text_position_BK": np.zeros((B, K), np.int32),
        "grid_BS3": np.ones((B, 1, 3), np.int32),
        "time_step_BS": np.ones((B, 1), np.float32),
    }
    if given is not None:
        pack["given_BLC"] = np.zeros((B, L, shape.given_width), np.float32)
    if image is not None:
        pack["image_BME"] = np.zeros((B, M, image), np.float32)
        pack["image_segment_BM"] = np.ones((B, M), np.int32)

    def text(params):
        return merge_model(structure, params).encode_text(pack, np.float32)

    def predict(params, text_BKE):
        return merge_model(structure, params).predict(
            np.zeros((B, L, P), np.float32),
            pack,
            levels_BG=np.zeros((B, 2), np.float32),
            level_BL=np.zeros((B, L), np.int32),
            text_BKE=text_BKE,
            text_segment_BK=pack["text_segment_BK"],
        )

    work = work_of(pack["segment_BL"], pack["text_segment_BK"], pack.get("image_segment_BM"))
    encoded = jax.eval_shape(text, params)
    assert products(jax.make_jaxpr(text)(params).jaxpr) == TEXT.flops(work)
    counted = transformer_flops(shape, text_dim=TEXT.width, patch_width=P, work=work)
    # Queries and keys are turned with the help of a permutation, and cosines and sines spread to pairs once, which asks
    # for no arithmetic.
    head_dim = shape.width // shape.heads
    turning = shape.depth * 2 * B * L * 2 * shape.width * head_dim + 2 * B * L * 2 * (head_dim // 2) * head_dim
    found = products(jax.make_jaxpr(predict)(params, encoded).jaxpr) - turning
    # Sums over members and waves of a place are products in the program only.
    assert found == pytest.approx(counted, rel=0.02 if extras else 0)
    assert step_flops(shape, TEXT, patch_width=P, work=work) == 3 * (counted + TEXT.flops(work))


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3)), min_size=0, max_size=4), min_size=1, max_size=3)
)
def test_work_is_the_sum_over_segments(rows):
    segment_BL, text_segment_BK = np.zeros((len(rows), L), np.int32), np.zeros((len(rows), 12), np.int32)
    for row, segments in enumerate(rows):
        for array, column in ((segment_BL, 0), (text_segment_BK, 1)):
            ids = [slot for slot, counts in enumerate(segments, 1) for _ in range(counts[column])]
            array[row, : len(ids)] = ids
    work = work_of(segment_BL, text_segment_BK)
    counts = [counts for segments in rows for counts in segments]
    assert (work.tokens, work.text_tokens) == (sum(n for n, _ in counts), sum(m for _, m in counts))
    assert work.segments == len(counts)
    assert work.pairs == sum(n * n for n, _ in counts)
    assert work.text_pairs == sum(n * m for n, m in counts)
    assert work.text_squares == sum(m * m for _, m in counts)


def test_padding_and_empty_rows_cost_nothing():
    nothing = work_of(np.zeros((2, 8), np.int32), np.zeros((2, 4), np.int32))
    assert nothing == NO_WORK
    row = np.array([[1, 1, 2, 0]])
    assert work_of(row, row) == work_of(np.pad(row, ((0, 1), (0, 60))), np.pad(row, ((0, 1), (0, 7))))
    assert step_flops(config(extras=True), TEXT, patch_width=P, work=nothing) == 0
    assert work_of(row, row) + nothing == work_of(row, row)


def test_clips_beside_that_see_themselves_alone_cost_less_and_no_text():
    segment_BL = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 2, 0]])
    alone_BL = np.array([[0, 0, 0, 1, 1, 2, 0, 0, 3, 0]])
    text_BK = np.array([[1, 1, 2]])
    work = work_of(segment_BL, text_BK, alone_BL=alone_BL)
    assert work.pairs == 3 * 6 + 2 * 2 + 1 + 2 * 3 + 1
    assert work.text_pairs == 3 * 2 + 2 * 1
    plain = work_of(segment_BL, text_BK)
    assert (plain.pairs, plain.text_pairs) == (36 + 9, 12 + 3)
    assert (plain.tokens, plain.segments) == (work.tokens, work.segments) == (9, 2)
