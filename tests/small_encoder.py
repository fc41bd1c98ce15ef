"""Complete text encoders of random weights in folders, as people download them; no torch, no download."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

tokenizers = pytest.importorskip("tokenizers")

SPECIAL = ("<pad>", "</s>", "<unk>")
WORDS = ("a", "red", "blue", "green", "circle", "square", "triangle", "moves", "right", "left", "up", "down", "and")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 ,.;<>_/&!'"


def write_t5(folder, *, each=True, seed=0, width=16, mlp_width=24, heads=2, head_width=8, depth=2, tokenizer=True):
    """Returns the folder with config.json, model.safetensors and tokenizer.json of a T5 v1.1, with `each` of a UMT5."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pieces = unigram_pieces()
    config = {
        "model_type": "umt5" if each else "t5",
        "vocab_size": len(pieces),
        "d_model": width,
        "d_ff": mlp_width,
        "d_kv": head_width,
        "num_heads": heads,
        "num_layers": depth,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(t5_weights(config, each=each, seed=seed), folder / "model.safetensors", {"format": "pt"})
    if tokenizer:
        (folder / "tokenizer.json").write_text(json.dumps(unigram_tokenizer(pieces)))
    return folder


def t5_weights(config, *, each, seed=0):
    """Returns random float32 tensors by the names of Hugging Face; none is special."""
    rng = np.random.default_rng(seed)
    width, inner, mlp = config["d_model"], config["num_heads"] * config["d_kv"], config["d_ff"]

    def normal(*shape):
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    def scale():
        return (1 + 0.3 * rng.standard_normal(width)).astype(np.float32)

    weights = {
        "shared.weight": rng.standard_normal((config["vocab_size"], width)).astype(np.float32),
        "encoder.final_layer_norm.weight": scale(),
    }
    for number in range(config["num_layers"]):
        attention, mapped = (f"encoder.block.{number}.layer.{part}" for part in (0, 1))
        weights |= {f"{attention}.SelfAttention.{name}.weight": normal(inner, width) for name in "qkv"}
        weights |= {f"{attention}.SelfAttention.o.weight": normal(width, inner)}
        weights |= {f"{mapped}.DenseReluDense.wi_{name}.weight": normal(mlp, width) for name in (0, 1)}
        weights |= {f"{mapped}.DenseReluDense.wo.weight": normal(width, mlp)}
        weights |= {f"{part}.layer_norm.weight": scale() for part in (attention, mapped)}
        if each or number == 0:
            name = f"{attention}.SelfAttention.relative_attention_bias.weight"
            weights[name] = rng.standard_normal((32, config["num_heads"])).astype(np.float32)
    return weights


def unigram_pieces():
    """Returns (piece, score) by number: the special tokens, letters, words, and a sentinel as T5's files have."""
    return [
        *((token, 0.0) for token in SPECIAL),
        *((letter.replace(" ", "▁"), -8.0) for letter in LETTERS),
        *((f"▁{word}", -4.0) for word in WORDS),
        ("<extra_id_0>", 0.0),
    ]


def unigram_tokenizer(pieces):
    """Returns what is in a tokenizer.json of the T5 family."""
    built = tokenizers.Tokenizer(tokenizers.models.Unigram(list(pieces), unk_id=2))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    built.decoder = tokenizers.decoders.Metaspace()
    built.add_special_tokens([*SPECIAL, "<extra_id_0>"])
    built.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return json.loads(built.to_str())
