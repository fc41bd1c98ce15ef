"""What a run has trained is written for other programs, or what these would not compute alike is told."""

import pytest

from sora_jax.core.errors import UserError
from sora_jax.experiment.exporting import export_transformer
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.settings import read_settings
from sora_jax.train.workdir import Workdir


def test_a_transformer_that_sees_clips_beside_clips_is_told_to_be_none_of_wan(toy_config, tmp_path):
    config = toy_config()
    config.transformer.update(pooled_text=False, place_features=False, rope_theta=10_000.0, text_pad_to=512)
    config.context.kinds = ("edges", "boxes")
    models = RunModels(Workdir(tmp_path), read_settings(config))
    said = "this transformer: Wan sees no clips beside a clip, and this one was trained with edges, boxes$"
    with pytest.raises(UserError, match=said):
        export_transformer(models, str(tmp_path / "out"), "diffusers", dtype=None)
