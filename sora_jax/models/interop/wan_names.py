"""One table of the names of Wan's transformer: ours, those of diffusers, those of Wan's own code; and of shapes.

Theirs: Linear weights are (out, in), the patch embedding is a convolution (D, C, pt, ph, pw), blocks are numbered.
Ours: kernels are (in, out), a patch is (pt ph pw C) with the channel fastest, what is given to a token after its noise;
blocks are stacked on a leading axis. Nothing else differs, so all ways are exact.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from sora_jax.core.errors import UserError

Layout = Literal["diffusers", "original"]
LAYOUTS: tuple[Layout, ...] = ("diffusers", "original")
# How a foreign array becomes ours: as it is, transposed, without its leading 1, from a convolution's kernel.
Form = Literal["same", "transpose", "squeeze", "convolution"]
_DIMS: dict[Form, int] = {"same": 1, "transpose": 2, "squeeze": 2, "convolution": 2}  # of ours


class Name(NamedTuple):
    """One tensor; of a block without the "blocks" and its number."""

    ours: str
    diffusers: str
    original: str
    form: Form

    def theirs(self, layout: Layout) -> str:
        """Returns the foreign name."""
        return self.diffusers if layout == "diffusers" else self.original


def _linear(ours: str, diffusers: str, original: str) -> list[Name]:
    return [
        Name(f"{ours}.kernel", f"{diffusers}.weight", f"{original}.weight", "transpose"),
        Name(f"{ours}.bias", f"{diffusers}.bias", f"{original}.bias", "same"),
    ]


def _norm(ours: str, diffusers: str, original: str, *, bias: bool) -> list[Name]:
    scale = Name(f"{ours}.scale", f"{diffusers}.weight", f"{original}.weight", "same")
    return [scale, Name(f"{ours}.bias", f"{diffusers}.bias", f"{original}.bias", "same")] if bias else [scale]


def _attention(ours: str, original: str) -> list[Name]:
    names: list[Name] = []
    for part, theirs, short in (
        ("to_q", "to_q", "q"),
        ("to_k", "to_k", "k"),
        ("to_v", "to_v", "v"),
        ("to_out", "to_out.0", "o"),
    ):
        names += _linear(f"{ours}.{part}", f"{ours}.{theirs}", f"{original}.{short}")
    for norm in ("norm_q", "norm_k"):
        names += _norm(f"{ours}.{norm}", f"{ours}.{norm}", f"{original}.{norm}", bias=False)
    return names


_CONDITION = "condition_embedder"
_IMAGE = f"{_CONDITION}.image_embedder"

# The parts of a block.
BLOCK_PARTS: tuple[Name, ...] = (
    *_attention("attn1", "self_attn"),
    *_attention("attn2", "cross_attn"),
    # The one before attention to the text, the only norm of a block with weights besides those of queries and keys.
    *_norm("norm2", "norm2", "norm3", bias=True),
    *_linear("mlp_in", "ffn.net.0.proj", "ffn.0"),
    *_linear("mlp_out", "ffn.net.2", "ffn.2"),
    Name("modulation", "scale_shift_table", "modulation", "squeeze"),
)
# Those of a block that attends to the tokens of an image.
IMAGE_BLOCK: tuple[Name, ...] = (
    *_linear("attn2.add_k_proj", "attn2.add_k_proj", "cross_attn.k_img"),
    *_linear("attn2.add_v_proj", "attn2.add_v_proj", "cross_attn.v_img"),
    *_norm("attn2.norm_added_k", "attn2.norm_added_k", "cross_attn.norm_k_img", bias=False),
)
# What is outside of the blocks.
REST: tuple[Name, ...] = (
    Name("patch_embedding.kernel", "patch_embedding.weight", "patch_embedding.weight", "convolution"),
    Name("patch_embedding.bias", "patch_embedding.bias", "patch_embedding.bias", "same"),
    *_linear(f"{_CONDITION}.time_in", f"{_CONDITION}.time_embedder.linear_1", "time_embedding.0"),
    *_linear(f"{_CONDITION}.time_out", f"{_CONDITION}.time_embedder.linear_2", "time_embedding.2"),
    *_linear(f"{_CONDITION}.time_proj", f"{_CONDITION}.time_proj", "time_projection.1"),
    *_linear(f"{_CONDITION}.text_in", f"{_CONDITION}.text_embedder.linear_1", "text_embedding.0"),
    *_linear(f"{_CONDITION}.text_out", f"{_CONDITION}.text_embedder.linear_2", "text_embedding.2"),
    Name("modulation", "scale_shift_table", "head.modulation", "squeeze"),
    *_linear("proj_out", "proj_out", "head.head"),
)
IMAGE_REST: tuple[Name, ...] = (
    *_norm(f"{_CONDITION}.image.norm_in", f"{_IMAGE}.norm1", "img_emb.proj.0", bias=True),
    *_linear(f"{_CONDITION}.image.proj_in", f"{_IMAGE}.ff.net.0.proj", "img_emb.proj.1"),
    *_linear(f"{_CONDITION}.image.proj_out", f"{_IMAGE}.ff.net.2", "img_emb.proj.3"),
    *_norm(f"{_CONDITION}.image.norm_out", f"{_IMAGE}.norm2", "img_emb.proj.4", bias=True),
)
POSITIONS = Name(f"{_CONDITION}.image.positions", f"{_IMAGE}.pos_embed", "img_emb.emb_pos", "squeeze")


def rest_names(*, image: bool, positions: bool) -> tuple[Name, ...]:
    """Returns what is outside of the blocks, with an image embedder and its positions or without."""
    return (*REST, *(IMAGE_REST if image else ()), *((POSITIONS,) if positions else ()))


def block_names(*, image: bool) -> tuple[Name, ...]:
    """Returns the parts of a block that attends to an image or not."""
    return (*BLOCK_PARTS, *(IMAGE_BLOCK if image else ()))


def their_shape(shape: Sequence[int], form: Form, *, patch: tuple[int, int, int]) -> tuple[int, ...]:
    """Returns the foreign shape of a parameter of one block, or of none, from ours.

    Raises UserError where it cannot be: a patch width that is no multiple of the positions of `patch`.
    """
    if len(shape) != _DIMS[form]:
        raise UserError(f"a parameter has the shape {tuple(shape)}, where {_DIMS[form]} dimensions are expected")
    if form == "transpose":
        return (shape[1], shape[0])
    if form == "squeeze":
        return (1, *shape)
    if form == "convolution":
        if shape[0] % math.prod(patch):
            raise UserError(f"the patch width {shape[0]} is not a multiple of the {math.prod(patch)} of patch {patch}")
        return (shape[1], shape[0] // math.prod(patch), *patch)
    return tuple(shape)


def to_ours(array: np.ndarray, form: Form, *, out_channels: int) -> np.ndarray:
    """Returns our form of a foreign array, a view of it but for a convolution's kernel."""
    if form == "transpose":
        return array.T
    if form == "squeeze":
        return array[0]
    if form == "convolution":
        # The noisy patch first, then what is given.
        parts = (array[:, :out_channels], array[:, out_channels:])
        return np.concatenate([part.transpose(2, 3, 4, 1, 0).reshape(-1, len(array)) for part in parts])
    return array


def to_theirs(array: np.ndarray, form: Form, *, patch: tuple[int, int, int], out_channels: int) -> np.ndarray:
    """Returns the foreign form of an array of ours, contiguous; the exact inverse of `to_ours`."""
    if form == "transpose":
        return np.ascontiguousarray(array.T)
    if form == "squeeze":
        return np.ascontiguousarray(array[None])
    if form == "convolution":
        cut = math.prod(patch) * out_channels
        parts = (part.reshape(*patch, -1, array.shape[1]) for part in (array[:cut], array[cut:]))
        return np.ascontiguousarray(np.concatenate(list(parts), axis=3).transpose(4, 3, 0, 1, 2))
    return np.ascontiguousarray(array)
