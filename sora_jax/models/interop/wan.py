"""The public Wan transformer weights: their names and shapes to ours and back, one to one.

Their form is that of diffusers' `WanTransformer3DModel`: Linear weights are (out, in), the patch embedding is
a convolution (D, C, pt, ph, pw), blocks are numbered. Ours: kernels are (in, out), a patch is (pt ph pw C)
with the channel fastest, blocks are stacked on a leading axis. Nothing else differs, so both ways are exact.

Wan's own pipeline pads the text of every prompt with zero vectors to 512 tokens and attends to all of them.
To get its numbers from its weights, give each segment 512 text tokens, those after the prompt zero.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.core.tree import abstract_model
from sora_jax.models.interop.weights import HostParams, check_names, listed, read_weights
from sora_jax.models.transformer import Transformer, TransformerConfig

_TAKE_CONFIG = "take the config from the config.json beside the weights"

# What of their config our block fixes, and to what.
_FIXED = {
    "_class_name": "WanTransformer3DModel",
    "qk_norm": "rms_norm_across_heads",
    "cross_attn_norm": True,
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
_NEEDED = (
    *("patch_size", "num_attention_heads", "attention_head_dim", "num_layers", "ffn_dim", "freq_dim"),
    *("in_channels", "out_channels", "text_dim"),
)

# How a foreign array becomes ours: as it is, transposed, without its leading 1, from a convolution's kernel.
_Form = Literal["same", "transpose", "squeeze", "convolution"]
_Table = dict[str, tuple[str, _Form]]


def _linear(ours: str, theirs: str) -> _Table:
    return {f"{ours}.kernel": (f"{theirs}.weight", "transpose"), f"{ours}.bias": (f"{theirs}.bias", "same")}


def _attention(name: str) -> _Table:
    table: _Table = {f"{name}.{norm}.scale": (f"{name}.{norm}.weight", "same") for norm in ("norm_q", "norm_k")}
    for part in ("to_q", "to_k", "to_v"):
        table |= _linear(f"{name}.{part}", f"{name}.{part}")
    return table | _linear(f"{name}.to_out", f"{name}.to_out.0")


# Our name -> (their name, form), for the parts of one block and for what is outside the blocks.
_BLOCK: _Table = {
    **_attention("attn1"),
    **_attention("attn2"),
    "norm2.scale": ("norm2.weight", "same"),
    "norm2.bias": ("norm2.bias", "same"),
    **_linear("mlp_in", "ffn.net.0.proj"),
    **_linear("mlp_out", "ffn.net.2"),
    "modulation": ("scale_shift_table", "squeeze"),
}
_REST: _Table = {
    "patch_embedding.kernel": ("patch_embedding.weight", "convolution"),
    "patch_embedding.bias": ("patch_embedding.bias", "same"),
    **_linear("condition_embedder.time_in", "condition_embedder.time_embedder.linear_1"),
    **_linear("condition_embedder.time_out", "condition_embedder.time_embedder.linear_2"),
    **_linear("condition_embedder.time_proj", "condition_embedder.time_proj"),
    **_linear("condition_embedder.text_in", "condition_embedder.text_embedder.linear_1"),
    **_linear("condition_embedder.text_out", "condition_embedder.text_embedder.linear_2"),
    "modulation": ("scale_shift_table", "squeeze"),
    **_linear("proj_out", "proj_out"),
}


def from_wan(weights: Mapping[str, np.ndarray]) -> HostParams:
    """Returns our transformer's parameters, float32 on the host, from Wan's weights by their names.

    Every foreign name is used exactly once and every one of ours is filled; otherwise UserError lists the
    names that are missing or left over. The dtype widens exactly from bfloat16 or float16.
    """
    blocks = {int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d+)\.", name))}
    # One block at least, so that a file of something else is described by all the names it lacks.
    depth = max(blocks, default=0) + 1
    wanted = {theirs for theirs, _ in _REST.values()}
    wanted |= {f"blocks.{i}.{theirs}" for i in range(depth) for theirs, _ in _BLOCK.values()}
    check_names(found=weights, wanted=wanted, what="Wan weights", remedy="use text-to-video weights of diffusers")
    params = {ours: _to_ours(weights[theirs], theirs, form) for ours, (theirs, form) in _REST.items()}
    for ours, (theirs, form) in _BLOCK.items():
        names = [f"blocks.{i}.{theirs}" for i in range(depth)]
        layers = [_to_ours(weights[name], name, form) for name in names]
        shapes = sorted({layer.shape for layer in layers})
        if len(shapes) > 1:
            raise UserError(f"Wan weights: blocks.*.{theirs} has shapes {shapes}; blocks must be alike")
        params[f"blocks.{ours}"] = np.stack(layers)
    return params


def to_wan(params: Mapping[str, Any], *, patch: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Returns Wan's weights by their names; the exact inverse of `from_wan`.

    Args:
      params: Our transformer's parameters by name, arrays of numpy or jax. Parts that Wan does not have
        (pooled text, place features) are a UserError that lists them.
      patch: (time, height, width) of a token, which our flat patch width does not tell.
    """
    ours = {*_REST, *(f"blocks.{name}" for name in _BLOCK)}
    check_names(found=params, wanted=ours, what="parameters", remedy="Wan has no pooled text, no place features")
    weights = {
        theirs: _to_theirs(np.asarray(params[name]), name, form, patch) for name, (theirs, form) in _REST.items()
    }
    for name, (theirs, form) in _BLOCK.items():
        for i, layer in enumerate(np.asarray(params[f"blocks.{name}"])):
            weights[f"blocks.{i}.{theirs}"] = _to_theirs(layer, name, form, patch)
    return weights


def config_from_wan(foreign: Mapping[str, Any], *, time_rate: float, remat: str) -> TransformerConfig:
    """Returns our config for weights with diffusers' `config.json`, read as a dict.

    UserError if they need what our block does not have: image cross-attention, other norms, or inputs that
    carry more channels than the output.

    Args:
      foreign: The parsed config.json beside the weights.
      time_rate: Time positions per second. Wan counts latent frames, so it is frames per second over temporal
        stride: 16 / 4 = 4 for Wan 2.1, 24 / 4 = 6 for Wan 2.2 TI2V.
      remat: What the backward pass keeps, a key of `nn.stack.REMAT_POLICIES`.
    """
    missing = [name for name in _NEEDED if name not in foreign]
    if missing:
        raise UserError(f"Wan config lacks {', '.join(missing)}: give the config.json of the transformer itself")
    for name, value in _FIXED.items():
        if foreign.get(name, value) != value:
            raise UserError(
                f"Wan config: {name} is {foreign[name]!r} but this transformer has only {value!r}; "
                "use text-to-video weights of Wan 2.1 or 2.2"
            )
    if foreign["in_channels"] != foreign["out_channels"]:
        raise UserError(
            f"Wan config: in_channels {foreign['in_channels']}, out_channels {foreign['out_channels']}; "
            "use text-to-video weights, whose two counts are equal"
        )
    return TransformerConfig(
        patch=tuple(foreign["patch_size"]),
        width=foreign["num_attention_heads"] * foreign["attention_head_dim"],
        depth=foreign["num_layers"],
        heads=foreign["num_attention_heads"],
        mlp_width=foreign["ffn_dim"],
        frequency_dim=foreign["freq_dim"],
        rope_theta=10_000.0,
        time_rate=time_rate,
        attention="auto",
        exchange="gather",
        remat=remat,
        pooled_text=False,
        place_features=False,
        text_pad_to=None,
        given_channels=None,
        image_dim=None,
        image_positions=None,
    )


def widths_from_wan(foreign: Mapping[str, Any]) -> dict[str, int]:
    """Returns `patch_width` and `text_dim`, the arguments of `Transformer` that its config does not hold."""
    return {
        "patch_width": math.prod(foreign["patch_size"]) * foreign["in_channels"],
        "text_dim": foreign["text_dim"],
    }


def load_wan(path: str | Path, config: TransformerConfig) -> HostParams:
    """Returns our parameters, float32 on the host, of the Wan weights at `path`.

    UserError if they are absent, damaged, or do not fit `config`; the message lists the names that differ.

    Args:
      path: The transformer's folder as diffusers saves it (one file, or several with an index), or one
        .safetensors file. Pickled weights are not read.
      config: The transformer to fill, as `config_from_wan` gives it.
    """
    params = from_wan(read_weights(path))
    expected = _expected_shapes(config, params)
    check_names(found=params, wanted=expected, what=f"{path}", remedy=_TAKE_CONFIG)
    wrong = [
        f"{name} is {params[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if params[name].shape != shape
    ]
    if wrong:
        raise UserError(f"{path} does not fit the config: {listed(wrong)}; {_TAKE_CONFIG}")
    return params


def _expected_shapes(config: TransformerConfig, params: HostParams) -> dict[str, tuple[int, ...]]:
    """Returns our shapes by name; the two widths that the config leaves open are those of `params`."""
    patch_width = params["patch_embedding.kernel"].shape[0]
    text_dim = params["condition_embedder.text_in.kernel"].shape[0]
    _, shapes, _ = abstract_model(
        lambda key: Transformer(config, patch_width=patch_width, text_dim=text_dim, rngs=nnx.Rngs(key))
    )
    return {name: tuple(value.shape) for name, value in shapes.items()}


def _to_ours(array: np.ndarray, name: str, form: _Form) -> np.ndarray:
    dims = {"same": 1, "transpose": 2, "squeeze": 3, "convolution": 5}[form]
    if array.ndim != dims or (form == "squeeze" and array.shape[0] != 1):
        raise UserError(f"Wan weights: {name} has shape {array.shape}, expected {dims} dimensions")
    array = np.asarray(array, np.float32)
    if form == "transpose":
        return array.T
    if form == "squeeze":
        return array[0]
    if form == "convolution":
        return array.transpose(2, 3, 4, 1, 0).reshape(-1, array.shape[0])
    return array


def _to_theirs(array: np.ndarray, name: str, form: _Form, patch: tuple[int, int, int]) -> np.ndarray:
    if form == "transpose":
        return np.ascontiguousarray(array.T)
    if form == "squeeze":
        return array[None]
    if form == "convolution":
        if array.shape[0] % math.prod(patch):
            raise UserError(f"{name}: patch width {array.shape[0]} is not a multiple of patch {patch}")
        kernel = array.reshape(*patch, -1, array.shape[1]).transpose(4, 3, 0, 1, 2)
        return np.ascontiguousarray(kernel)
    return array
