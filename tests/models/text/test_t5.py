"""The T5 family: files of several makers read alike, refusals; with transformers (marker parity), the same states."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sora_jax.core.errors import UserError
from sora_jax.models.text import build_encoder
from sora_jax.models.text.files import EncoderFiles
from sora_jax.models.text.t5 import distance_buckets
from sora_jax.models.text.t5_files import read_t5
from tests.models.text.against_torch import assert_agree
from tests.small_encoder import text_config, write_t5

TEXTS = ("a red circle moves right", "", "a blue square")


def encoder(path, name="umt5"):
    return build_encoder(text_config(name, path)).tokenizer


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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"relative_attention_max_distance": None}, "relative_attention_max_distance None is not a whole number"),
        ({"relative_attention_max_distance": 0}, "32 biases of distances up to 0"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon 'small' is not a number"),
    ],
)
def test_a_config_of_which_no_network_comes_is_told(umt5, tmp_path, change, said):
    folder = shutil.copytree(umt5, tmp_path / "umt5")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=said):
        encoder(folder).encode(TEXTS)


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


def test_where_both_tables_of_pieces_are_saved_the_zeros_do_not_count(umt5, expected, tmp_path):
    weights = load_file(umt5 / "model.safetensors")
    folder = write_t5(tmp_path / "copy")
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file(weights, folder / "model.safetensors")
    for found, wanted in zip(encoder(folder).encode(TEXTS), expected, strict=True):
        np.testing.assert_array_equal(found["text_BKE"], wanted["text_BKE"])


def changed(name, weights):
    """Returns the weights with a fault."""
    q = "encoder.block.1.layer.0.SelfAttention.q.weight"
    faults = {
        "version 1.0": {"encoder.block.0.layer.1.DenseReluDense.wi.weight": weights[q]},
        "missing": {q: None},
        "shape": {q: weights[q][:-1]},
        "surplus": {"encoder.block.1.adapter.weight": weights[q]},
        "quantised": {f"{q}.scale_weight": weights[q]},
        "shared biases": {"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": None},
        "nothing": dict.fromkeys(weights) | {"conv1.weight": weights[q]},
        "decoder": {"decoder.block.0.layer.0.SelfAttention.q.weight": weights[q], "lm_head.weight": weights[q]},
    }
    return {name: value for name, value in (weights | faults[name]).items() if value is not None}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("version 1.0", "is a T5 of version 1.0, whose feed-forward has no gate: give one of version 1.1"),
        ("missing", "block.1.layer.0.SelfAttention.q.weight is missing"),
        ("shape", r"SelfAttention.q.weight is \(15, 16\) instead of \(16, 16\)"),
        ("surplus", "encoder.block.1.adapter.weight is not known"),
        ("quantised", r"holds quantised weights \(encoder.*scale_weight\): give those in bfloat16"),
        ("shared biases", "holds a t5, by its biases of distances, and text.encoder is 'umt5'"),
        ("nothing", "is no encoder of the T5 family: shared.weight, .* missing"),
    ],
)
def test_other_weights_are_refused_by_name(name, said, tmp_path):
    folder = write_t5(tmp_path)
    save_file(changed(name, load_file(folder / "model.safetensors")), folder / "model.safetensors")
    with pytest.raises(UserError, match=said):
        encoder(folder).encode(["a"])


def test_a_decoder_is_left_and_does_not_count(umt5, expected, tmp_path):
    folder = write_t5(tmp_path)
    save_file(changed("decoder", load_file(folder / "model.safetensors")), folder / "model.safetensors")
    assert encoder(folder).recipe == encoder(umt5).recipe
    np.testing.assert_array_equal(encoder(folder).encode(TEXTS)[0]["text_BKE"], expected[0]["text_BKE"])


def test_pickles_and_missing_files_are_refused_with_what_to_give(tmp_path):
    with pytest.raises(UserError, match=r"does not exist; give a folder"):
        encoder(tmp_path / "nothing").count("a")
    (tmp_path / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"holds only pickles .* give the text_encoder folder of the diffusers layout"):
        encoder(tmp_path).count("a")
    with pytest.raises(UserError, match="is a pickle, which can run any code"):
        encoder(tmp_path / "models_t5_umt5-xxl-enc-bf16.pth").count("a")
    folder = write_t5(tmp_path / "torn", tokenizer=False)
    with pytest.raises(UserError, match=r"has no tokenizer: put its tokenizer.json or spiece.model beside the weights"):
        encoder(folder).count("a")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        encoder(folder).count("a")
    with pytest.raises(UserError, match=r"text\.weights is not given"):
        encoder(None).count("a")
    assert encoder(None).arrays["text_BKE"][0] == 4096, "plans need no files"


def test_byt5_needs_no_file_of_pieces(tmp_path):
    folder = write_t5(tmp_path, each=False, vocabulary=384, tokenizer=False)
    tokenizer = encoder(folder, "t5")
    assert tokenizer.count("aé") == 4
    assert tokenizer.recipe["tokenizer"] == "bytes of UTF-8"
    assert len(tokenizer.encode(["aé"])[0]["text_BKE"]) == 4


def test_distances_fall_into_the_buckets_of_the_paper():
    bucket_KK = distance_buckets(200, buckets=32, max_distance=128)
    begins = {0: 0, 7: 7, 8: 8, 12: 9, 16: 10, 23: 11, 32: 12, 46: 13, 64: 14, 91: 15, 199: 15}
    for distance, bucket in begins.items():
        assert bucket_KK[199, 199 - distance] == bucket
        if distance:
            assert bucket_KK[0, distance] == bucket + 16
            assert distance < 9 or distance == 199 or bucket_KK[0, distance - 1] == bucket + 15


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "each", "vocabulary"), [("UMT5", True, None), ("T5", False, None), ("T5", False, 384)]
)
def test_states_agree_with_torch(kind, each, vocabulary, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = write_t5(tmp_path, each=each, vocabulary=vocabulary)
    config = getattr(transformers, f"{kind}Config")(**json.loads((folder / "config.json").read_text()))
    model = getattr(transformers, f"{kind}EncoderModel")(config).eval()
    weights = {name: torch.tensor(value) for name, value in load_file(folder / "model.safetensors").items()}
    missing, surplus = model.load_state_dict(weights, strict=False)
    assert (missing, surplus) == (["encoder.embed_tokens.weight"], [])
    assert_agree(model, read_t5(EncoderFiles(folder), bias_in_each=each), lengths=(200, 150, 7, 1), torch=torch)
