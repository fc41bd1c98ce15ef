"""Adapters in a run: what its stages train, what is added to its weights, and what it gives back."""

from pathlib import Path

import jax
import numpy as np
import pytest

import sora_jax
from sora_jax.core.errors import UserError
from sora_jax.experiment.adapters import Adapters, read_adapters
from sora_jax.experiment.settings import read_settings
from sora_jax.models.interop.lora_writing import save_lora
from sora_jax.nn.lora import LoraConfig


def with_lora(config, **stage):
    config.transformer.lora.rank = 2
    config.run = ("prepare", "videos")
    config.autoencoder.start_from = "runs/other"
    config.stages.videos.update(stage)
    return config


def test_stages_train_the_adapters_alone_unless_they_say_otherwise(toy_config):
    config = with_lora(toy_config(), start_from="runs/other/checkpoints/videos")
    stage = read_settings(config).stages["videos"]
    assert (stage.trainable, stage.frozen_dtype) == (r".*\.lora_[ab]", "bfloat16")
    config.stages.videos.trainable = ".*"
    stage = read_settings(config).stages["videos"]
    assert (stage.trainable, stage.frozen_dtype) == (".*", None)


def test_a_stage_without_weights_to_adapt_is_refused(toy_config):
    with pytest.raises(UserError, match="the stage videos has no weights to adapt: give"):
        read_settings(with_lora(toy_config()))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), Adapters()),
        (["a.safetensors:0.5", "own:0", "b"], Adapters(own=0.0, files=(("a.safetensors", 0.5), ("b", 1.0)))),
        ("own:0.5", Adapters(own=0.5)),
        ({"own": 0.25, "c": 2}, Adapters(own=0.25, files=(("c", 2),))),
    ],
)
def test_weights_are_read(given, expected):
    assert read_adapters(given) == expected


def test_a_file_may_be_a_path():
    assert (
        read_adapters([Path("a.safetensors")]) == read_adapters(Path("a.safetensors")) == read_adapters("a.safetensors")
    )


def test_a_file_may_be_in_a_home(monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    assert read_adapters(["~/a.safetensors:0.5"]) == Adapters(files=(("/homes/me/a.safetensors", 0.5),))


def test_what_is_no_weight_is_told():
    with pytest.raises(UserError, match="'much' is no weight; give FILE:WEIGHT"):
        read_adapters(["a.safetensors:much"])
    for given in (["a.safetensors:nan"], ["own:-inf"], {"a.safetensors": float("inf")}):
        with pytest.raises(UserError, match="a weight must be finite; give one such as"):
            read_adapters(given)


@pytest.mark.parametrize("given", [["a:0.5", "b", "a:0.25"], ["a:0.25", "a:0.25"], ["a", "a"], ["own:0", "own"]])
def test_an_adapter_is_given_once(given):
    with pytest.raises(UserError, match=r"--lora=(a|own) is given with weights .* and .*: give it once"):
        read_adapters(given)


def test_files_are_added_with_their_weights_and_weight_0_changes_no_bit(toy_workdir, tmp_path):
    def params(**lora):
        return sora_jax.open_run(toy_workdir, devices=jax.devices()[:1], **lora).models.params

    before, name = params(), "blocks.attn1.to_q.kernel"
    layers, ins, outs = before[f"transformer.{name}"].shape
    generator = np.random.default_rng(0)
    first, last = generator.normal(size=(layers, ins, 2)), generator.normal(size=(layers, 2, outs))
    file = save_lora(tmp_path / "a.safetensors", {name: (first, last)}, scale=0.5, facts={}, dtype="float32")
    still, after = params(lora={file: 0}), params(lora=[f"{file}:0.5"])
    assert still.keys() == after.keys() == before.keys()
    for one, value in before.items():
        np.testing.assert_array_equal(still[one], value)
        change = 0.25 * first @ last if one == f"transformer.{name}" else 0
        np.testing.assert_allclose(after[one], value + change, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="this run has trained no adapter"):
        params(lora={"own": 0.5})


def test_the_own_adapter_has_its_weight_and_its_scale():
    kernel, first, last = np.ones((1, 3, 2)), np.ones((1, 3, 1)), np.full((1, 1, 2), 2.0)
    values = {"kernel": kernel, "lora_a": first, "lora_b": last}
    params = {f"transformer.blocks.mlp_in.{name}": jax.numpy.asarray(value) for name, value in values.items()}
    lora = LoraConfig(rank=1, alpha=3.0, targets=None)
    for weight, expected in ((0.0, 1.0), (0.5, 4.0), (1.0, 7.0)):
        merged = Adapters(own=weight).merged(params, lora)
        assert merged.keys() == {"transformer.blocks.mlp_in.kernel"}
        np.testing.assert_array_equal(merged["transformer.blocks.mlp_in.kernel"], np.full((1, 3, 2), expected))
