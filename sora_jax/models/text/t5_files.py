"""The T5 family in files: names of Hugging Face and of Wan's own table, shapes, and the rows `t5` and `umt5`."""

import functools
import re
from collections.abc import Mapping

import jax

from sora_jax.core.errors import UserError
from sora_jax.core.rng import Rngs
from sora_jax.core.typed import typed
from sora_jax.models.interop.weights import listed
from sora_jax.models.text.cleaning import PLAIN, WAN
from sora_jax.models.text.files import EncoderFiles, StoredTensor, text_weights_needed
from sora_jax.models.text.frozen import Family
from sora_jax.models.text.network import TextWeights
from sora_jax.models.text.pieces import BytePieces, Pieces
from sora_jax.models.text.t5 import T5Config, T5Encoder

_BLOCK = "encoder.block.{}."
_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"
# Our names -> those of Hugging Face; a block's without what they begin with.
_IN_BLOCK = {
    "norm1.scale": "layer.0.layer_norm.weight",
    "to_q": "layer.0.SelfAttention.q.weight",
    "to_k": "layer.0.SelfAttention.k.weight",
    "to_v": "layer.0.SelfAttention.v.weight",
    "to_out": "layer.0.SelfAttention.o.weight",
    "bias": _BIAS,
    "norm2.scale": "layer.1.layer_norm.weight",
    "mlp_gate": "layer.1.DenseReluDense.wi_0.weight",
    "mlp_in": "layer.1.DenseReluDense.wi_1.weight",
    "mlp_out": "layer.1.DenseReluDense.wo.weight",
}
_TABLE, _COPY, _NORM = "shared.weight", "encoder.embed_tokens.weight", "encoder.final_layer_norm.weight"
# Names of Wan's own table -> those of Hugging Face.
_WAN = {"token_embedding.weight": _TABLE, "norm.weight": _NORM}
_WAN_IN_BLOCK = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": _BIAS,
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}
_WAN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_BYTE_PIECES = 384


def read_t5(files: EncoderFiles, *, bias_in_each: bool) -> TextWeights:
    """Returns the network of the files; UserError where they hold T5 1.0, another kind of biases or no T5.

    `bias_in_each` is whether each block has its own biases of distances: UMT5.
    """
    tensors = hugging_face_names(files.weights())
    _check_kind(files, tensors, bias_in_each=bias_in_each)
    depth = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.block."))
    first = {ours: tensors[_BLOCK.format(0) + theirs].shape for ours, theirs in _IN_BLOCK.items()}
    vocabulary, width = tensors[_TABLE].shape
    buckets, heads = first["bias"]
    far = typed("relative_attention_max_distance", files.config.get("relative_attention_max_distance", 128), int)
    if not 1 <= buckets // 4 < far:
        raise UserError(f"{files.path} has {buckets} biases of distances up to {far}: give weights and config of one")
    config = T5Config(
        vocabulary=vocabulary,
        width=width,
        mlp_width=first["mlp_in"][0],
        heads=heads,
        head_width=first["to_q"][0] // heads,
        depth=depth,
        buckets=buckets,
        max_distance=far,
        bias_in_each=bias_in_each,
        eps=typed("layer_norm_epsilon", files.config.get("layer_norm_epsilon", 1e-6), float),
    )
    names = {ours: _BLOCK + theirs for ours, theirs in _IN_BLOCK.items()}
    if not bias_in_each:
        names["bias"] = _BLOCK.format(0) + _BIAS
    return TextWeights(
        build=lambda key: T5Encoder(config, rngs=Rngs(key)),
        names={**names, "table": _TABLE, "norm.scale": _NORM},
        tensors=tensors,
        unused=r"decoder\.|lm_head\.",
        vocabulary=vocabulary,
        positions=None,
        width=width,
        place=str(files.path),
    )


def hugging_face_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns the tensors under the names of Hugging Face, from these or from those of Wan's own table.

    The latter may begin with "encoder.". Of two tables of pieces, which should be equal, `shared.weight` counts: the
    other may have been saved as zeros.
    """
    bare = {name.removeprefix("encoder."): tensor for name, tensor in tensors.items()}
    if "token_embedding.weight" in bare:
        found = {}
        for name, tensor in bare.items():
            block = _WAN_BLOCK.fullmatch(name)
            if block and block[2] in _WAN_IN_BLOCK:
                name = _BLOCK.format(block[1]) + _WAN_IN_BLOCK[block[2]]
            found[_WAN.get(name, name)] = tensor
        return found
    found = dict(tensors)
    if (copy := found.pop(_COPY, None)) is not None:
        found.setdefault(_TABLE, copy)
    return found


def _check_kind(files: EncoderFiles, tensors: Mapping[str, StoredTensor], *, bias_in_each: bool) -> None:
    """Raises UserError for what is no encoder of the family and kind asked for."""
    if any(name.endswith("DenseReluDense.wi.weight") for name in tensors):
        raise UserError(f"{files.path} is a T5 of version 1.0, whose feed-forward has no gate: give one of version 1.1")
    wanted = [_TABLE, _NORM, *(_BLOCK.format(0) + theirs for theirs in _IN_BLOCK.values())]
    if missing := [name for name in wanted if name not in tensors]:
        raise UserError(f"{files.path} is no encoder of the T5 family: {listed(missing)} missing")
    shapes = {name: tensors[name].shape for name in (_TABLE, _BLOCK.format(0) + _BIAS)}
    if wrong := [f"{name} is {shape}" for name, shape in shapes.items() if len(shape) != 2 or 0 in shape]:
        raise UserError(f"{files.path} is no encoder of the T5 family: {listed(wrong)}")
    if (act := files.config.get("feed_forward_proj", "gated-gelu")) != "gated-gelu":
        raise UserError(f"{files.path} has feed-forwards of {act}, and only gated-gelu is read")
    several = _BLOCK.format(1) + _BIAS in tensors
    if several != bias_in_each and _BLOCK.format(1) + _IN_BLOCK["to_q"] in tensors:
        found, asked = ("umt5", "t5") if several else ("t5", "umt5")
        raise UserError(f"{files.path} holds a {found}, by its biases of distances, and text.encoder is {asked!r}")


def _pieces(files: EncoderFiles) -> Pieces:
    """Returns the tokenizer of the files; that of a ByT5, which has no file, by its name or its size."""
    if files.tokenizer_config.get("tokenizer_class") == "ByT5Tokenizer":
        return BytePieces()
    if hugging_face_names(files.weights())[_TABLE].shape[0] == _BYTE_PIECES:
        return BytePieces()
    return files.pieces()


_XXL = T5Config(
    vocabulary=256_384,
    width=4096,
    mlp_width=10_240,
    heads=64,
    head_width=64,
    depth=24,
    buckets=32,
    max_distance=128,
    bias_in_each=True,
    eps=1e-6,
)


def _usual(key: jax.Array) -> T5Encoder:
    return T5Encoder(_XXL, rngs=Rngs(key))


UMT5 = Family(
    name="umt5",
    width=4096,
    positions=None,
    cleaning=WAN,
    before=(),
    after=("</s>",),
    states="last states",
    place=text_weights_needed,
    pieces=_pieces,
    weights=functools.partial(read_t5, bias_in_each=True),
    usual=_usual,
)
T5 = Family(
    name="t5",
    width=4096,
    positions=None,
    cleaning=PLAIN,
    before=(),
    after=("</s>",),
    states="last states",
    place=text_weights_needed,
    pieces=_pieces,
    weights=functools.partial(read_t5, bias_in_each=False),
)
