"""The T5 family: files of several makers read alike, refusals; with transformers (marker parity), the same states."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sora_jax.models.text import build_encoder
from sora_jax.models.text.encoder import TextConfig
from tests.small_encoder import write_t5

TEXTS = ("a red circle moves right", "", "a blue square")


def encoder(path, name="umt5", max_tokens=64):
    weights = None if path is None else str(path)
    return build_encoder(
        TextConfig(encoder=name, weights=weights, width=8, depth=1, heads=1, max_tokens=max_tokens)
    ).tokenizer


@pytest.fixture(scope="module")
def umt5(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("umt5"))


@pytest.fixture(scope="module")
def expected(umt5):
    return encoder(umt5).encode(TEXTS)


def test_states_have_the_true_length_with_the_end_and_are_bfloat16(umt5, expected):
    tokenizer = encoder(umt5)
    assert [len(text["text_BKE"]) for text in expected] == [6, 1, 4] == [tokenizer.count(text) for text in TEXTS]
    assert {text["text_BKE"].dtype for text in expected} == {np.dtype(ml_dtypes.bfloat16)}
    assert tokenizer.arrays == {"text_BKE": (16, np.dtype(ml_dtypes.bfloat16))}
    assert tokenizer.stored


def wan_names(weights):
    """Returns the tensors by the names of Wan's own table."""
    parts = {
        "layer.0.layer_norm": "norm1",
        "layer.1.layer_norm": "norm2",
        "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "layer.0.SelfAttention": "attn",
        "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
        "layer.1.DenseReluDense.wi_1": "ffn.fc1",
        "layer.1.DenseReluDense.wo": "ffn.fc2",
        "encoder.block": "blocks",
        "encoder.final_layer_norm": "norm",
        "shared": "token_embedding",
    }
    for theirs, wans in parts.items():
        weights = {name.replace(theirs, wans): value for name, value in weights.items()}
    return weights


def variant(name, weights, folder):
    """Returns what `text.weights` names, of the same weights as another program saves them."""
    tokenizer = (folder / "tokenizer.json").read_bytes()
    new = folder.parent / name
    new.mkdir(parents=True)
    if name == "comfy":
        embedded = {"tokenizer_json": np.frombuffer(tokenizer, np.uint8)}
        save_file(weights | embedded, new / "umt5_xxl_fp16.safetensors")
        return new / "umt5_xxl_fp16.safetensors"
    if name in ("wan", "kijai"):
        prefix = "encoder." if name == "kijai" else ""
        (new / "google/umt5-xxl").mkdir(parents=True)
        (new / "google/umt5-xxl/tokenizer.json").write_bytes(tokenizer)
        renamed = {f"{prefix}{name}": value for name, value in wan_names(weights).items()}
        save_file(renamed, new / "models_t5_umt5-xxl-enc-bf16.safetensors")
        save_file({"conv1.weight": np.zeros(1)}, new / "diffusion_pytorch_model.safetensors")
        return new
    (new / "text_encoder").mkdir()
    (new / "tokenizer").mkdir()
    (new / "tokenizer/tokenizer.json").write_bytes(tokenizer)
    names, files = sorted(weights), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    zeros = {"encoder.embed_tokens.weight": np.zeros_like(weights["shared.weight"])}
    for file, half, more in zip(files, halves, (zeros, {}), strict=True):
        save_file({one: weights[one] for one in half} | more, new / "text_encoder" / file)
    where = {one: file for file, half in zip(files, halves, strict=True) for one in half}
    (new / "text_encoder/model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return new


@pytest.mark.parametrize("name", ["diffusers", "comfy", "wan", "kijai"])
def test_files_of_other_makers_give_the_same_states(name, umt5, expected, tmp_path):
    folder = write_t5(tmp_path / "umt5")
    path = variant(name, load_file(folder / "model.safetensors"), folder)
    for found, wanted in zip(encoder(path).encode(TEXTS), expected, strict=True):
        np.testing.assert_array_equal(found["text_BKE"], wanted["text_BKE"])
