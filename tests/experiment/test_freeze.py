"""Stages of the autoencoder that freeze its encoder: what they train, and what of them is refused."""

import jax
import numpy as np
import pytest

from sora_jax.checkpoints.reading import load_tree
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.experiment.loading import load_codec
from sora_jax.experiment.recipes import state_maker
from sora_jax.experiment.settings import read_settings
from sora_jax.train.workdir import Workdir
from tests.toy_autoencoder import get_config


def frozen(**stage):
    config = get_config()
    changes = {"freeze": "encoder", **stage}
    config.update_from_flattened_dict({f"stages.second.{key}": value for key, value in changes.items()})
    return config


def test_the_decoder_and_its_judge_are_trained_alone():
    settings = read_settings(frozen())
    mesh = make_mesh(MeshConfig(data=1, fsdp=None, sequence=1, tensor=1), jax.devices()[:1])
    maker = state_maker(settings, "second", mesh)
    state = maker.abstract()
    assert {name.partition(".")[0] for name in state.params} == {"decoder", "discriminator"}
    assert {name.partition(".")[0] for name in state.frozen} == {"encoder"}
    assert {str(value.dtype) for value in state.frozen.values()} == {"float32"}, "latents stay bit for bit"
    assert state_maker(settings, "first", mesh).trainable is None


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"trainable": r"decoder\..*"}, "both say what is trained"),
        ({"frozen_dtype": "bfloat16"}, "say in trainable what it trains"),
        ({"freeze": "decoder"}, "stages.second.freeze"),
    ],
)
def test_what_contradicts_it_is_refused(stage, said):
    with pytest.raises(UserError, match=said):
        read_settings(frozen(**stage))


def test_there_must_be_an_encoder_to_keep():
    config = frozen()
    config.run = ("second",)
    with pytest.raises(UserError, match="keeps what an earlier stage trained, and there is none"):
        read_settings(config)
    config.update_from_flattened_dict({"stages.second.start_from": "runs/other/checkpoints/first"})
    assert read_settings(config).run == ("second",)


@pytest.mark.slow
def test_a_run_keeps_every_bit_of_its_encoder(python, tmp_path):
    """The first stage's average is what the second freezes, and what is used in the end."""
    asked = ("--config=tests/toy_autoencoder.py", f"--workdir={tmp_path}", "--config.stages.second.freeze=encoder")
    done = python("-m", "sora_jax.main", *asked)
    assert done.returncode == 0, done.stderr
    opened = Workdir(tmp_path)
    codec = load_codec(opened, read_settings(opened.config()))
    before = load_tree(opened.checkpoints("first"), {"ema": {"width_0.1": codec.params}}).state["ema"]["width_0.1"]
    same = {name for name in codec.params if np.array_equal(before[name], codec.params[name])}
    assert {name for name in codec.params if name.startswith("encoder.")} <= same
    assert not {name for name in same if name.startswith("decoder.conv_in")}
