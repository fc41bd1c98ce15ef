"""The count of a captioner's FLOPs, against every matrix product in its programs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.data.tokens import BYTES_PER_TOKEN
from sora_jax.models.captioner_flops import captioner_flops, recomputed_flops
from sora_jax.models.flops import work_of
from sora_jax.objectives.captioner import CaptionerLossConfig, make_objective
from tests.models.test_captioner import CONFIG, build
from tests.models.test_flops import products

B, L, K = 2, 96, 12
CONFIG = dataclasses.replace(CONFIG, width=64, depth=3, unimodal=2, multimodal=2, mlp_width=160, local_width=16)
LOSS = CaptionerLossConfig(
    caption=2.0,
    contrastive=1.0,
    temperature=0.07,
    contrast="softmax",
    word_dropout=0.0,
    token_dropout=None,
    expand_share=None,
)
PACK = {
    "tokens_BLP": np.zeros((B, L, 3), np.float32),
    "position_BL3": np.zeros((B, L, 3), np.float32),
    "segment_BL": np.ones((B, L), np.int32),
    "text_BKQ": np.ones((B, K, BYTES_PER_TOKEN), np.int32),
    "text_segment_BK": np.ones((B, K), np.int32),
    "text_position_BK": np.zeros((B, K), np.int32),
    "grid_BS3": np.ones((B, 1, 3), np.int32),
    "time_step_BS": np.ones((B, 1), np.float32),
}
WORK = work_of(PACK["segment_BL"], PACK["text_segment_BK"])


def step_products(*, backward: bool, **changed):
    """Returns the FLOPs of the products of a step."""
    config = dataclasses.replace(CONFIG, **changed)
    structure, params, _ = abstract_model(functools.partial(build, config=config))
    objective = make_objective(LOSS, dtype=jnp.float32)

    def loss(params):
        return objective(merge_model(structure, params), PACK, jax.random.key(0))[0].value()

    return products(jax.make_jaxpr(jax.grad(loss) if backward else loss)(params).jaxpr)


# What programs multiply and the count leaves out: rotary positions are turned by a permutation, and of the squares of
# captions half is masked.
TURNING = CONFIG.depth * 2 * B * L * 2 * CONFIG.width * (CONFIG.width // CONFIG.heads)
MASKED = (CONFIG.unimodal + CONFIG.multimodal) * 2 * CONFIG.width * B * (K + 1) ** 2


@pytest.mark.parametrize("queries", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_full_rows_of_one_segment_cost_the_products_of_the_program(queries):
    config = dataclasses.replace(CONFIG, generative_queries=queries)
    found = step_products(backward=False, generative_queries=queries) - TURNING - MASKED
    # Poolers' own queries, heads of embeddings and the comparison of the batch are left out.
    assert found == pytest.approx(captioner_flops(config, patch_width=3, work=WORK), rel=0.02)


@pytest.mark.parametrize("queries", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_what_is_computed_again_is_what_a_program_multiplies_more(queries):
    once = step_products(backward=True, generative_queries=queries)
    for remat, masked in (("dots", 0), ("attention", 0), ("full", MASKED)):
        config = dataclasses.replace(CONFIG, generative_queries=queries, remat=remat)
        more = step_products(backward=True, generative_queries=queries, remat=remat) - once
        turned = TURNING if remat != "dots" else 0
        assert more - turned - masked == recomputed_flops(config, work=WORK)
    offload = dataclasses.replace(CONFIG, generative_queries=queries, remat="offload")
    assert recomputed_flops(offload, work=WORK) == recomputed_flops(config, work=WORK)
