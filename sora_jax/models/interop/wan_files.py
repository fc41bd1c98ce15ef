"""What a Wan transformer on disk is, from the heads of its files alone; what cannot be read is refused there."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sora_jax.core.errors import UserError
from sora_jax.models.interop.json_files import check_heads, read_config
from sora_jax.models.interop.variants import HEAD_DIM
from sora_jax.models.interop.wan_names import Layout, rest_names
from sora_jax.models.interop.wan_shape import CLASSES, FIXED, WanShape
from sora_jax.models.interop.weights import FLOAT_TYPES, Stored, check_names, listed, read_headers

# Of the mask that says which frames are given, beside their latent: one for each frame of a latent one.
MASK_CHANNELS = 4
_GIVE = "give a Wan transformer's folder, or its .safetensors file"
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "module.")
# Present in some files, of no use in any.
_IGNORED = re.compile(r"blocks\.\d+\.attn2\.norm_added_q\.weight")
_QUANTISED = re.compile(r"scale_weight|scale_input|weight_scale|scaled_fp8|comfy_quant|absmax|quant_(map|state)")
# What other models of the family have besides, and how they are called.
_OTHERS = {
    r"vace_": "VACE",
    r"(motion_encoder|face_adapter|face_encoder|pose_patch_embedding)\b": "Wan Animate",
    r"(casual_audio_encoder|audio_injector|audio_proj|trainable_cond_mask|cond_encoder|frame_packer)\b": "Wan S2V",
    r"(control_adapter|ref_conv|patch_embedding_camera)\b": "Wan Fun Control",
}


def describe_wan(path: str | Path) -> WanShape:
    """Returns the shape of the transformer at `path`, from the heads of its files.

    UserError where it is absent, damaged, incomplete or no transformer that is read here.

    Args:
      path: Its folder, as diffusers saves it or as Wan published it, or one .safetensors file; names of diffusers or of
        Wan, also with the prefixes of ComfyUI. Pickled weights are not read.
    """
    return described(path)[0]


def described(path: str | Path) -> tuple[WanShape, dict[str, Stored]]:
    """Returns what `describe_wan` does, and where each tensor lies, by its name without prefix."""
    path = Path(path)
    if path.suffix.lower() == ".gguf":
        raise UserError(f"{path} is quantised (GGUF), which is not read here: give the bf16 or fp16 .safetensors file")
    tensors = {_bare(name): stored for name, stored in read_headers(path, remedy=_GIVE).items()}
    tensors = {name: stored for name, stored in tensors.items() if not _IGNORED.fullmatch(name)}
    _refuse(path, tensors)
    shape = _inferred(path, {name: stored.shape for name, stored in tensors.items()}, _foreign_config(path))
    wanted = shape.shapes()
    check_names(found=tensors, wanted=wanted, what=str(path), remedy=_GIVE)
    wrong = [
        f"{name} is {tensors[name].shape} instead of {size}"
        for name, size in wanted.items()
        if tensors[name].shape != size
    ]
    if wrong:
        raise UserError(f"{path} is no Wan transformer of one shape: {listed(wrong)}; {_GIVE}")
    if shape.in_channels not in (shape.out_channels, 2 * shape.out_channels + MASK_CHANNELS):
        raise UserError(
            f"{path} takes {shape.in_channels} channels and gives {shape.out_channels}; only "
            f"{shape.out_channels} of noise, or with a mask and a latent {2 * shape.out_channels + MASK_CHANNELS}, are "
            "read here: give weights for text or a first frame, none of Wan Fun Control"
        )
    return shape, tensors


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _refuse(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Raises UserError for quantised weights and for those of other models."""
    marked = [name for name in tensors if _QUANTISED.search(name)]
    kinds = [f"{name} ({stored.kind})" for name, stored in tensors.items() if stored.kind not in FLOAT_TYPES]
    if quantised := marked or kinds:
        raise UserError(
            f"{path} is quantised, as {quantised[0]} shows, which is not read here: give the bf16, fp16 or fp32 weights"
        )
    for pattern, model in _OTHERS.items():
        if others := [name for name in tensors if re.match(rf"(blocks\.\d+\.)?{pattern}", name)]:
            raise UserError(f"{path} holds {model}, as {others[0]} shows, which is not read here: {_GIVE}")


def _inferred(path: Path, found: Mapping[str, tuple[int, ...]], foreign: Mapping[str, Any]) -> WanShape:
    """Returns the shape that the tensors have if they are those of a transformer at all."""
    original = "head.modulation" in found
    layout: Layout = "original" if original else "diffusers"
    theirs = {name.ours: name.theirs(layout) for name in rest_names(image=True, positions=True)}
    embedder = "condition_embedder"
    needed = {
        "patch": (theirs["patch_embedding.kernel"], 5),
        "mlp": (f"blocks.0.{'ffn.0' if original else 'ffn.net.0.proj'}.weight", 2),
        "out": (theirs["proj_out.kernel"], 2),
        "time": (theirs[f"{embedder}.time_in.kernel"], 2),
        "text": (theirs[f"{embedder}.text_in.kernel"], 2),
    }
    if missing := [name for name, dims in needed.values() if len(found.get(name, ())) != dims or 0 in found[name]]:
        raise UserError(f"{path} is no whole Wan transformer: it lacks {listed(missing)}; {_GIVE}")
    sizes = {what: found[name] for what, (name, _) in needed.items()}
    width, in_channels, *patch = sizes["patch"]
    image = found.get(theirs[f"{embedder}.image.proj_in.kernel"])
    positions = found.get(theirs[f"{embedder}.image.positions"])
    shape = WanShape(
        patch=(patch[0], patch[1], patch[2]),
        width=width,
        mlp_width=sizes["mlp"][0],
        heads=_heads(path, width, foreign),
        depth=1 + max(int(name.split(".")[1]) for name in found if re.match(r"blocks\.\d+\.", name)),
        in_channels=in_channels,
        out_channels=sizes["out"][0] // math.prod(patch),
        text_dim=sizes["text"][1],
        frequency_dim=sizes["time"][1],
        image_dim=None if image is None else image[1],
        image_positions=None if positions is None else positions[-2],
        layout=layout,
    )
    _compare(path, shape, foreign)
    return shape


def _foreign_config(path: Path) -> dict[str, Any]:
    """Returns the config.json of the transformer beside the weights, or nothing."""
    file = (path.parent if path.is_file() else path) / "config.json"
    known = read_config(file, remedy="download it again, or remove it")
    name = known.get("_class_name")
    if path.is_file() and name not in CLASSES:
        return {}  # of something else that lies there
    if name not in (None, *CLASSES):
        raise UserError(f"{file}: _class_name is {name!r}, which is not read here; {_GIVE}")
    for key, value in FIXED.items():
        if known.get(key, value) != value:
            raise UserError(f"{file}: {key} is {known[key]!r}, and only {value!r} is read here; {_GIVE}")
    return known


def _heads(path: Path, width: int, foreign: Mapping[str, Any]) -> int:
    heads = foreign.get("num_attention_heads", foreign.get("num_heads"))
    if heads is None and width % HEAD_DIM:
        raise UserError(
            f"{path}: the width {width} is no multiple of {HEAD_DIM}, the width of a head of Wan: put the config.json "
            "of the transformer beside the weights"
        )
    heads = width // HEAD_DIM if heads is None else heads
    check_heads(heads, width=width, what=str(path))
    return heads


def _compare(path: Path, shape: WanShape, foreign: Mapping[str, Any]) -> None:
    """Raises UserError where the config.json says something else than the tensors."""
    said = {
        "num_layers": shape.depth,
        "ffn_dim": shape.mlp_width,
        "freq_dim": shape.frequency_dim,
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "in_dim": shape.in_channels,
        "out_dim": shape.out_channels,
        "dim": shape.width,
        "attention_head_dim": shape.width // shape.heads,
        "text_dim": shape.text_dim,
        "patch_size": list(shape.patch),
        "image_dim": shape.image_dim,
        "pos_embed_seq_len": shape.image_positions,
    }
    if wrong := [
        f"{key} {foreign[key]!r}, not {said[key]!r}" for key in said if foreign.get(key, said[key]) != said[key]
    ]:
        raise UserError(f"{path}: its config.json does not fit the weights: {listed(wrong)}; give both of one model")
