import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core import rng
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.sharding import replicated
from sora_jax.core.tree import abstract_model
from sora_jax.data.packing.packs import PackLayout
from sora_jax.data.packing.plan import Budget
from sora_jax.data.shards.files import Prepared
from sora_jax.data.shards.prepared import PreparedSet, ShardWriter
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.evaluation.loss_grid import LEVELS, LossGrid, LossTable
from tests.small import generator, path_config, random_params

HEADER = {
    "autoencoder": "ab",
    "text_encoder": "cd",
    "latent_mean": [0.0] * 4,
    "latent_scale": [1.0] * 4,
    "strides": [4, 4],
    "channels": 4,
}
LAYOUT = PackLayout(
    budget=Budget(tokens=16, text_tokens=24, segments=4),
    patch=(1, 1, 1),
    channels=4,
    temporal_stride=4,
    time_rate=2.0,
    tokenizer=BYTE_TOKENIZER,
)
GRIDS = ((1, 2, 2), (2, 2, 2), (1, 2, 4), (3, 2, 2), (1, 2, 2))
STRUCTURE, SHAPES, _ = abstract_model(generator(4, depth=1))
PARAMS = random_params(SHAPES)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path, random = tmp_path_factory.mktemp("heldout"), np.random.default_rng(0)
    with ShardWriter(path, header=HEADER, tokenizer=BYTE_TOKENIZER) as writer:
        for number, (t, h, w) in enumerate(GRIDS):
            writer.add(
                Prepared(
                    latent_THWC=random.normal(size=(t, h, w, 4)).astype(np.float32),
                    fps=8.0,
                    captions=(f"clip {number}",),
                    source_id=f"clip_{number}",
                    pixel_shape=(1 + 4 * (t - 1), 4 * h, 4 * w),
                    trimmed_frames=0,
                )
            )
    return PreparedSet(path)


def grid(prepared, layout=LAYOUT, **options):
    made_of = {"rows": 2, "config": path_config(), "dtype": jnp.float32, "seed": 0}
    return LossGrid(STRUCTURE, prepared, layout, **{**made_of, **options})


@pytest.fixture(scope="module")
def table(prepared):
    return grid(prepared)(PARAMS)


def test_a_clip_has_the_same_loss_whatever_it_is_packed_with_and_wherever_it_is_computed(prepared, table):
    alone = dataclasses.replace(LAYOUT, budget=dataclasses.replace(LAYOUT.budget, segments=1))
    np.testing.assert_allclose(grid(prepared, alone)(PARAMS).loss_NV, table.loss_NV, rtol=1e-4)
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, sequence=1, tensor=1), jax.devices()[:2])
    spread = grid(prepared, mesh=mesh)(jax.device_put(PARAMS, replicated(mesh)))
    np.testing.assert_allclose(spread.loss_NV, table.loss_NV, rtol=1e-4)
    assert table.loss_NV.shape == (len(GRIDS), LEVELS)
    assert np.all(table.loss_NV > 0)


def test_clips_of_the_kinds_that_are_asked_for_are_measured_and_all_where_there_are_none(prepared, table):
    images = [number for number, (frames, _, _) in enumerate(GRIDS) if frames == 1]
    np.testing.assert_allclose(grid(prepared, kinds=["images"])(PARAMS).loss_NV, table.loss_NV[images], rtol=1e-4)
    assert grid(prepared, kinds=[])(PARAMS).frames == table.frames


def test_levels_and_noise_are_those_of_the_seed(prepared, table):
    assert np.array_equal(grid(prepared)(PARAMS).loss_NV, table.loss_NV)
    other = grid(prepared, seed=1)(PARAMS)
    assert other.levels == table.levels
    assert np.all(other.loss_NV != table.loss_NV)
    np.testing.assert_allclose(grid(prepared, noise_range=(0.9, 1.0)).levels[:2], (0.90625, 0.91875))


def test_a_network_that_says_nothing_errs_by_the_velocity_with_noise_of_both_signs(prepared):
    config = path_config(prediction="velocity")
    found = grid(prepared, config=config)({name: jnp.zeros_like(value) for name, value in PARAMS.items()}).loss_NV
    for clip in range(len(GRIDS)):
        latent_LP = prepared[clip].latent_THWC.reshape(-1, 4)
        for pair in range(LEVELS // 2):
            drawn = rng.generator(0, f"held-out noise of clip_{clip}", pair)
            noise_LP = drawn.standard_normal(latent_LP.shape, np.float32)
            expected = [np.mean(np.square(sign * noise_LP - latent_LP)) for sign in (1, -1)]
            np.testing.assert_allclose(found[clip, 2 * pair : 2 * pair + 2], expected, rtol=1e-5)


def test_facts_are_means_over_clips(table):
    facts = table.facts()
    losses = table.loss_NV.mean(1)
    assert facts["loss"] == pytest.approx(losses.mean())
    assert facts["stderr"] == pytest.approx(losses.std(ddof=1) / len(losses) ** 0.5)
    assert [one["loss"] for one in facts["by_level"]] == pytest.approx(list(table.loss_NV.mean(0)))
    assert facts["by_size"][1] == {"size": "8x16", "loss": pytest.approx(losses[2]), "stderr": 0.0}
    assert [one["frames"] for one in facts["by_duration"]] == [1, 5, 9]
    assert facts["clips"] == len(GRIDS)
    scalars = table.scalars()
    assert scalars["heldout_loss"] == facts["loss"]
    assert scalars["heldout_loss_frames_5"] == pytest.approx(losses[1])
    assert {"heldout_stderr", "heldout_loss_level_0.0625", "heldout_loss_size_8x8"} <= scalars.keys()


def test_one_clip_has_no_standard_error():
    one = LossTable(levels=(0.5,), loss_NV=np.array([[2.0]]), sizes=[(8, 8)], frames=[1])
    assert (one.facts()["loss"], one.facts()["stderr"]) == (2.0, 0.0)


def test_clips_that_fit_no_row_are_refused(prepared):
    short = dataclasses.replace(LAYOUT, budget=Budget(tokens=3, text_tokens=24, segments=4))
    with pytest.raises(UserError, match="none of 5 held-out clips fits a row of 3 tokens"):
        grid(prepared, short)
