"""What is found in the folders of public models, and what is refused there, from the heads of files alone."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sora_jax.core.errors import UserError
from sora_jax.models.interop.model_folder import find_model
from sora_jax.models.interop.wan import save_wan
from sora_jax.models.interop.wan_autoencoder import latent_statistics
from sora_jax.models.interop.wan_files import describe_wan
from sora_jax.models.interop.weights import WEIGHTS_FILE
from sora_jax.models.text.files import EncoderFiles
from tests import public_model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    public_model.write_diffusers(root / "pipeline")
    public_model.write_original(root / "original", (5, 6))
    return root


@pytest.fixture
def pipeline(written, tmp_path):
    """A pipeline of diffusers to spoil."""
    return shutil.copytree(written / "pipeline", tmp_path / "pipeline")


@pytest.fixture
def original(written, tmp_path):
    return shutil.copytree(written / "original", tmp_path / "original")


def index(folder, **values):
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_pipeline_of_diffusers_is_found(written):
    found = find_model(written / "pipeline")
    assert found.name == "t2v_1_3b"
    assert found.transformers == (written / "pipeline" / "transformer",)
    assert found.autoencoder == written / "pipeline" / "vae"
    assert found.text == written / "pipeline" / "text_encoder"
    assert found.tokenizer == written / "pipeline" / "tokenizer"
    assert found.image is None
    assert found.notes == (f"{written / 'pipeline'} has width 24, as no public model: it is sampled as t2v_1_3b",)


def test_the_original_layout_with_two_experts_is_found(original):
    found = find_model(original)
    assert found.name == "t2v_a14b"
    assert [one.name for one in found.transformers] == ["high_noise_model", "low_noise_model"]
    assert found.variant.boundary == 0.875
    assert found.autoencoder == original / "wan_2.1_vae.safetensors"
    assert found.text == original / "umt5_xxl_fp16.safetensors"
    (original / "low_noise_model" / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match="low_noise_model"):
        find_model(original)
    shutil.rmtree(original / "low_noise_model")
    with pytest.raises(UserError, match="lacks low_noise_model/, the other of two experts"):
        find_model(original)


def test_single_files_of_comfyui_are_told_by_what_they_hold(original, tmp_path):
    folder = tmp_path / "models"
    for place, file, name in (
        ("diffusion_models", f"low_noise_model/{WEIGHTS_FILE}", "wan2.2_t2v_low_noise.safetensors"),
        ("diffusion_models", f"high_noise_model/{WEIGHTS_FILE}", "wan2.2_t2v_high_noise.safetensors"),
        ("vae", "wan_2.1_vae.safetensors", "a.safetensors"),
        ("text_encoders", "umt5_xxl_fp16.safetensors", "b.safetensors"),
    ):
        (folder / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(original / file, folder / place / name)
    shutil.copy(original / "high_noise_model/config.json", folder / "diffusion_models")
    found = find_model(folder)
    assert [one.name.split("_")[2] for one in found.transformers] == ["high", "low"]
    assert (found.name, found.autoencoder, found.text) == (
        "t2v_a14b",
        folder / "vae" / "a.safetensors",
        folder / "text_encoders" / "b.safetensors",
    )
    shutil.copy(found.transformers[1], found.transformers[1].with_name("another.safetensors"))
    with pytest.raises(UserError, match=r"has 3 transformers, another.safetensors"):
        find_model(folder)


def test_a_boundary_without_a_second_transformer_is_said_and_ignored(pipeline):
    index(pipeline, boundary_ratio=0.875, transformer_2=[None, None])
    found = find_model(pipeline)
    assert found.variant.boundary is None
    assert "boundary_ratio 0.875, but there is one transformer" in found.notes[-1]


def test_experts_of_a_pipeline_have_its_boundary(pipeline):
    shutil.copytree(pipeline / "transformer", pipeline / "transformer_2")
    index(pipeline, boundary_ratio=0.8, transformer_2=["diffusers", "WanTransformer3DModel"])
    with pytest.raises(UserError, match="are the same weights: download the two experts again"):
        find_model(pipeline)
    shutil.rmtree(pipeline / "transformer_2")
    save_wan(pipeline / "transformer_2", public_model.transformer_params(6), public_model.shape_of())
    assert find_model(pipeline).variant.boundary == 0.8
    index(pipeline, boundary_ratio=1.5)
    with pytest.raises(UserError, match=r"boundary_ratio 1\.5, which must be between 0 and 1"):
        find_model(pipeline)
    shutil.rmtree(pipeline / "transformer_2")
    with pytest.raises(UserError, match=r"lacks transformer_2/, which its model_index.json names"):
        find_model(pipeline)


def test_experts_of_two_models_are_refused(pipeline):
    other = dataclasses.replace(public_model.shape_of(given_channels=20))
    save_wan(pipeline / "transformer_2", public_model.transformer_params(7, given_channels=20), other)
    with pytest.raises(UserError, match=r"experts of two models .in_channels 16 and 36"):
        find_model(pipeline)


def test_models_of_one_shape_are_told_by_name(pipeline, tmp_path):
    shutil.rmtree(pipeline / "transformer")
    changes = {"given_channels": 20, "image_dim": 8}
    shape = public_model.shape_of(**changes)
    save_wan(pipeline / "transformer", public_model.transformer_params(7, **changes), shape)
    found = find_model(f"{pipeline}#i2v_14b_720p")
    assert (found.name, found.variant.shift) == ("i2v_14b_720p", 5.0)
    assert found.notes == ()
    with pytest.raises(UserError, match=r"'i2v' of .* is none of t2v_1_3b, t2v_14b"):
        find_model(f"{pipeline}#i2v")
    for name, variant in (("Wan2.1-I2V-14B-720P-Diffusers", "i2v_14b_720p"), ("Wan-I2V-480P", "i2v_14b_480p")):
        pipeline = pipeline.rename(tmp_path / name)
        assert find_model(pipeline).name == variant


def test_the_autoencoder_of_another_model_is_refused(pipeline):
    channels = public_model.shape_of().out_channels
    weights = load_file(pipeline / "vae" / WEIGHTS_FILE)
    for name in ("quant_conv.weight", "quant_conv.bias"):
        weights[name] = np.repeat(weights[name], 3, axis=0)
    weights["quant_conv.weight"] = np.repeat(weights["quant_conv.weight"], 3, axis=1)
    for name in ("post_quant_conv.weight", "decoder.conv_in.weight"):
        weights[name] = np.repeat(weights[name], 3, axis=1)
    weights["post_quant_conv.weight"] = np.repeat(weights["post_quant_conv.weight"], 3, axis=0)
    weights["post_quant_conv.bias"] = np.repeat(weights["post_quant_conv.bias"], 3)
    weights["encoder.conv_out.weight"] = np.repeat(weights["encoder.conv_out.weight"], 3, axis=0)
    weights["encoder.conv_out.bias"] = np.repeat(weights["encoder.conv_out.bias"], 3)
    save_file(weights, pipeline / "vae" / WEIGHTS_FILE)
    with pytest.raises(UserError, match=f"autoencoder of 48 channels and .* makes {channels}"):
        find_model(pipeline)


def test_pickles_are_refused_with_what_to_use_instead(original):
    (original / "umt5_xxl_fp16.safetensors").unlink()
    (original / "wan_2.1_vae.safetensors").unlink()
    found = find_model(original)
    assert found.text is found.autoencoder is None
    assert "has no text encoder: put text_encoder/ of" in found.lacks("text")
    (original / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"PK")
    (original / "Wan2.1_VAE.pth").write_bytes(b"PK")
    assert "models_t5_umt5-xxl-enc-bf16.pth is a pickle" in found.lacks("text")
    assert "put vae/ of the model's diffusers folder, or wan_2.1_vae.safetensors" in found.lacks("autoencoder")


def test_a_folder_may_have_the_sign_before_a_variant_in_its_name(pipeline, tmp_path):
    pipeline = pipeline.rename(tmp_path / "wan #2")
    assert find_model(pipeline).folder == pipeline
    assert find_model(f"{pipeline}#t2v_14b").name == "t2v_14b"


@pytest.mark.parametrize("heads", [0, "2", [2], 2.0, 5])
def test_heads_that_cannot_be_are_told(pipeline, heads):
    file = pipeline / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_attention_heads": heads}))
    with pytest.raises(UserError, match="heads, which do not divide the width 24"):
        find_model(pipeline)


@pytest.mark.parametrize("text", ["[]", "null", "[" * 100_000])
@pytest.mark.parametrize(
    ("part", "read"),
    [
        ("transformer", describe_wan),
        ("vae", lambda folder: latent_statistics(folder, 16)),
        ("text_encoder", lambda folder: EncoderFiles(folder).config.get("feed_forward_proj")),
    ],
)
def test_a_config_that_is_no_object_is_told(pipeline, part, read, text):
    (pipeline / part / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        read(pipeline / part)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_tensors_without_numbers_are_told(pipeline, part):
    weights = load_file(pipeline / part / WEIGHTS_FILE)
    name = "patch_embedding.weight" if part == "transformer" else "encoder.conv_in.weight"
    save_file(weights | {name: weights[name][:0]}, pipeline / part / WEIGHTS_FILE)
    with pytest.raises(UserError, match=rf"lacks {name}"):
        find_model(pipeline)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is no folder"):
        find_model(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds no model: it has neither model_index.json"):
        find_model(tmp_path)
    (tmp_path / "model_index.json").write_text("[")
    with pytest.raises(UserError, match=r"model_index.json is damaged"):
        find_model(tmp_path)
