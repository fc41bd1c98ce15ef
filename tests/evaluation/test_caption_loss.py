"""The held-out loss of a captioner is the captioning loss of each clip, whatever it is packed with."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.data.shards.files import Prepared
from sora_jax.data.shards.prepared import PreparedSet, ShardWriter
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.evaluation.caption_loss import CaptionLoss
from sora_jax.evaluation.heldout_packs import HeldoutPacks, curves_of
from sora_jax.objectives.captioner import make_objective
from tests.evaluation.test_loss_grid import HEADER
from tests.generate.test_captioning import LAYOUT
from tests.models.test_captioner import CONFIG, build, params_of
from tests.models.test_captioner_flops import LOSS

GRIDS = ((1, 2, 2), (2, 2, 2), (3, 2, 2))
CAPTIONS = ("a red circle", "blue", "a green square moves")
STRUCTURE = abstract_model(functools.partial(build, config=CONFIG))[0]


@pytest.fixture
def prepared(tmp_path):
    random = np.random.default_rng(0)
    header = {**HEADER, "latent_mean": [0.0] * 3, "latent_scale": [1.0] * 3, "channels": 3}
    with ShardWriter(tmp_path, header=header, tokenizer=BYTE_TOKENIZER) as writer:
        for (t, h, w), caption in zip(GRIDS, CAPTIONS, strict=True):
            writer.add(
                Prepared(
                    latent_THWC=random.normal(size=(t, h, w, 3)).astype(np.float32),
                    fps=8.0,
                    captions=(caption, "another"),
                    source_id=caption,
                    pixel_shape=(1 + 4 * (t - 1), 4 * h, 4 * w),
                    trimmed_frames=0,
                )
            )
    return PreparedSet(tmp_path)


@pytest.mark.slow  # compiles three programs
def test_a_clip_has_the_loss_that_training_would_have_without_hidden_words(prepared):
    params, objective = params_of(CONFIG), make_objective(LOSS, dtype=jnp.float32)

    def measured(segments):
        layout = dataclasses.replace(LAYOUT, budget=dataclasses.replace(LAYOUT.budget, segments=segments))
        packs = HeldoutPacks(prepared, layout, rows=1, seed=0, kinds=("images", "videos"), mesh=None)
        batches: list[dict[str, np.ndarray]] = []
        packs.measured(lambda pack: iter([batches.append(pack) or jnp.asarray(pack["sample_BS"])]))
        return CaptionLoss(STRUCTURE, packs, dtype=jnp.float32, mesh=None)(params), batches

    (together, _), (alone, batches) = measured(3), measured(1)
    np.testing.assert_allclose(together.loss_N, alone.loss_N, rtol=1e-4)
    trained = jax.jit(lambda pack: objective(merge_model(STRUCTURE, params), pack, jax.random.key(0))[1]["caption"])
    expected = {int(pack["sample_BS"][0, 0]): float(trained(pack).value()) for pack in batches}
    np.testing.assert_allclose(alone.loss_N, [expected[number] for number in range(3)], rtol=1e-4)
    curves = curves_of(alone.facts())
    assert curves["heldout_loss"] == pytest.approx(np.mean(alone.loss_N))
    assert curves["heldout_loss_frames_5"] == pytest.approx(alone.loss_N[1])
    assert not any("level" in name for name in curves)
