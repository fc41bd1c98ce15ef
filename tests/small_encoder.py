"""Complete text encoders of random weights in folders, as people download them; no torch, no download."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sora_jax.models.text.encoder import TextConfig

tokenizers = pytest.importorskip("tokenizers")


def text_config(encoder, weights=None, **changes):
    """Returns the `TextConfig` of a frozen encoder whose weights lie in a folder."""
    place = None if weights is None else str(weights)
    known = {"encoder": encoder, "weights": place, "width": 8, "depth": 1, "heads": 1, "max_tokens": 64}
    return TextConfig(**known | changes)


SPECIAL = ("<pad>", "</s>", "<unk>")
WORDS = ("a", "red", "blue", "green", "circle", "square", "triangle", "moves", "right", "left", "up", "down", "and")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 ,.;<>_/&!'"


def write_t5(
    folder,
    *,
    each=True,
    seed=0,
    width=16,
    mlp_width=24,
    heads=2,
    head_width=8,
    depth=2,
    vocabulary=None,
    tokenizer=True,
):
    """Returns the folder with config.json, model.safetensors and tokenizer.json of a T5 v1.1, with `each` of a UMT5."""
    pieces = unigram_pieces()
    config = {
        "model_type": "umt5" if each else "t5",
        "vocab_size": vocabulary or len(pieces),
        "d_model": width,
        "d_ff": mlp_width,
        "d_kv": width // heads,
        "num_heads": heads,
        "num_layers": depth,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
    }
    weights = t5_weights(config, each=each, seed=seed)
    return _write(folder, config, weights, unigram_tokenizer(pieces) if tokenizer else None)


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


def write_clip(folder, *, seed=0, width=16, mlp_width=32, heads=2, depth=2, positions=77, activation="quick_gelu"):
    """Returns the folder of a CLIP's text tower, with a tower of pictures that is left, as whole checkpoints have."""
    pieces = byte_pairs()
    config = {
        "model_type": "clip_text_model",
        "vocab_size": len(pieces),
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "max_position_embeddings": positions,
        "hidden_act": activation,
        "bos_token_id": pieces["<|startoftext|>"],
        "eos_token_id": pieces["<|endoftext|>"],
    }
    tables = {"token_embedding": len(pieces), "position_embedding": positions}
    layers = {"layer_norm1": None, "layer_norm2": None, "mlp.fc1": (mlp_width, width), "mlp.fc2": (width, mlp_width)}
    layers |= {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    weights = _tower(tables, layers, "text_model.encoder.layers.", depth=depth, width=width, seed=seed)
    weights = {name.replace("embeddings.", "text_model.embeddings."): value for name, value in weights.items()}
    weights |= {f"text_model.final_layer_norm.{part}": value for part, value in _norm(width, seed).items()}
    weights |= {"logit_scale": np.zeros(1, np.float32), "visual_projection.weight": np.zeros((2, 2), np.float32)}
    weights |= {"text_model.embeddings.position_ids": np.arange(positions)[None]}
    return _write(folder, config, weights, byte_pair_tokenizer(pieces))


def write_bert(folder, *, seed=0, width=16, mlp_width=32, heads=2, depth=2, positions=160):
    """Returns the folder of a BERT as MiniLM is one."""
    pieces = {
        piece: number for number, piece in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "##s", "[", "]"))
    }
    config = {
        "model_type": "bert",
        "vocab_size": len(pieces),
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "max_position_embeddings": positions,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    tables = {"word_embeddings": len(pieces), "position_embeddings": positions, "token_type_embeddings": 2}
    layers = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    layers |= {"attention.output.dense": (width, width), "attention.output.LayerNorm": None, "output.LayerNorm": None}
    layers |= {"intermediate.dense": (mlp_width, width), "output.dense": (width, mlp_width)}
    weights = _tower(tables, layers, "encoder.layer.", depth=depth, width=width, seed=seed)
    weights |= {f"embeddings.LayerNorm.{part}": value for part, value in _norm(width, seed).items()}
    weights |= {"pooler.dense.weight": np.zeros((width, width), np.float32)}
    model = tokenizers.models.WordPiece(pieces, unk_token="[UNK]")
    built = tokenizers.Tokenizer(model)
    built.normalizer = tokenizers.normalizers.BertNormalizer()
    built.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    built.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    built.enable_truncation(4)
    built.enable_padding(length=8)
    return _write(folder, config, weights, json.loads(built.to_str()))


def byte_pairs():
    """Returns the numbers of CLIP's kind of pieces: bytes, those at the end of a word, and the special tokens."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    return {piece: number for number, piece in enumerate(pieces)}


def byte_pair_tokenizer(pieces):
    """Returns what is in a tokenizer.json of CLIP."""
    end = "<|endoftext|>"
    merges = [("r", "e"), ("re", "d</w>")]
    model = tokenizers.models.BPE(pieces, merges, unk_token=end, end_of_word_suffix="</w>")
    built = tokenizers.Tokenizer(model)
    built.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
    )
    built.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    built.add_special_tokens(["<|startoftext|>", end])
    return json.loads(built.to_str())


def _tower(tables, layers, block, *, depth, width, seed):
    """Returns random tensors of tables and of blocks, whose layers are products (out, in) or norms."""
    rng = np.random.default_rng(seed)
    weights = {
        f"embeddings.{name}.weight": rng.standard_normal((rows, width)).astype(np.float32)
        for name, rows in tables.items()
    }
    for number in range(depth):
        for layer, shape in layers.items():
            values = _norm(width, rng) if shape is None else _product(shape, rng)
            weights |= {f"{block}{number}.{layer}.{part}": value for part, value in values.items()}
    return weights


def _product(shape, rng):
    kernel = rng.standard_normal(shape) * shape[-1] ** -0.5
    return {"weight": kernel.astype(np.float32), "bias": (0.3 * rng.standard_normal(shape[0])).astype(np.float32)}


def _norm(width, seed):
    rng = np.random.default_rng(seed)
    scale, bias = 1 + 0.3 * rng.standard_normal(width), 0.3 * rng.standard_normal(width)
    return {"weight": scale.astype(np.float32), "bias": bias.astype(np.float32)}


def _write(folder, config, weights, tokenizer):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder
