"""LoRA adapters of Wan transformers as files: the common forms in, the one that most programs read out.

Read are, all as safetensors (N a block, X a map; in brackets who writes them):
    transformer.blocks.N.attn1.to_q.lora_A.weight        names of diffusers (diffusers, finetrainers)
    diffusion_model.blocks.N.self_attn.q.lora_A.weight   names of Wan, or lora_down, lora_up (diffusion-pipe)
    lora_unet_blocks_N_self_attn_q.lora_down.weight      (musubi)
    base_model.model.blocks.N.X.lora_A.weight            (PEFT), with an adapter_config.json beside it
    blocks.N.X.lora_A.default.weight                     (DiffSynth)
Theirs: A is (r, in), B is (out, r), and what is added to a weight is (alpha / r) B A. Ours: A is (in, r), B (r, out),
stacked over blocks, with alpha / r in B. A bias of B is times alpha / r as well.
Of our own files one key more is read, `diffusion_model.roles.vectors`, of adapters that were trained with clips beside.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from safetensors import safe_open

from sora_jax.core.errors import UserError
from sora_jax.models.interop.json_files import parse_config, read_config
from sora_jax.models.interop.lora_names import AdaptedPlace, places_of
from sora_jax.models.interop.weights import listed, read_weights
from sora_jax.models.roles import VECTORS

ROLES_KEY = f"diffusion_model.{VECTORS}"
_GIVE = "give the .safetensors file of an adapter for this model"
_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_CONFIG = "adapter_config.json"
_PEFT = "base_model.model."
_PREFIXES = re.compile(r"(base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|lora_unet__?)+")
# The end of a key, and what it is of an adapter.
_PARTS = {
    r"lora_(A|down)(\.default)?\.weight": "down",
    r"lora_(B|up)(\.default)?\.weight": "up",
    r"lora_(B|up)(\.default)?\.bias": "bias of up",
    r"alpha": "alpha",
    r"diff": "weight",
    r"diff_b": "bias",
}
# Of them those that are nothing without both factors.
_SCALED = {"down", "up", "bias of up", "alpha"}
_KEY = re.compile(rf"(?P<module>.+?)\.(?P<part>{'|'.join(_PARTS)})")
# Of adapters that are no product of two factors.
_OTHERS = re.compile(r"\.(dora_scale|lora_magnitude_vector|lora_mid|hada_|lokr_|oft_|set_weight|w_norm|b_norm)")
_EXPERTS = ("high", "low")
_EXPERT = re.compile(r"(high|low)[_-]?noise", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraFile:
    """An adapter, or several in one file.

    Attributes:
      factors: By the name of a kernel its two factors, float32 (layers, in, r) and (layers, r, out), or without layers;
        their product is added to the kernel. A layer that has none, or one of a lower rank, has zeros.
      differences: By the name of a parameter what is added to it, float32.
      roles: Vectors of the roles of clips beside, float32 (R, D), in the place of those of the model; None: none.
      expert: "high" or "low", the one of two transformers that it is for; None: the file does not say.
      metadata: Of the file.
      matched: Keys of the file, all of which were used.
    """

    factors: dict[str, tuple[np.ndarray, np.ndarray]]
    differences: dict[str, np.ndarray]
    roles: np.ndarray | None
    expert: str | None
    metadata: dict[str, str]
    matched: int


def read_lora(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> LoraFile:
    """Returns the adapter in a file, or in a folder of diffusers or PEFT.

    Raises UserError where it is no such file, where a key is of nothing in the model, all of which are counted, where
    an adapter has another shape than the model, and for DoRA, LoHa and LoKr.

    Args:
      path: Of the file or folder.
      shapes: Of the parameters of our `Transformer`, by name; of its kernels those that adapters are added to.
    """
    file = _file(Path(path))
    tensors = read_weights(file, remedy=_GIVE)
    if not tensors:
        raise UserError(f"{file} holds nothing: {_GIVE}")
    if others := [key for key in tensors if _OTHERS.search(key)]:
        raise UserError(f"{file} is no plain LoRA, as {others[0]} shows, which is not read here: {_GIVE}")
    metadata = _metadata(file)
    places = places_of(shapes)
    count, roles = len(tensors), _pop_roles(file, tensors, shapes)
    found, unmatched = _sorted(tensors, places)
    if unmatched:
        _refuse(file, unmatched, len(tensors))
    scale = _scale_of(file, metadata, tensors)
    factors: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    differences: dict[str, np.ndarray] = {}
    for module, parts in found.items():
        place = places[module]
        if parts.keys() & _SCALED:
            layers = factors.setdefault(place.ours, {})
            if (place.layer or 0) in layers:
                raise UserError(f"{file} has {module} twice, by names of two forms: {_GIVE}")
            layers[place.layer or 0], times = _factors(file, module, parts, shapes[place.ours], scale)
            if "bias of up" in parts:
                parts["bias of up"] = parts["bias of up"] * np.float32(times)
        for kind in ("weight", "bias", "bias of up"):
            if kind in parts:
                _add(file, f"{module}, {kind}", differences, place.of(kind), parts[kind], shapes)
    _check_finite(file, factors, differences)
    stacked = {ours: _stack(layers, shapes[ours]) for ours, layers in factors.items()}
    named = _EXPERT.search(file.name)
    told = metadata["expert"] if metadata.get("expert") in _EXPERTS else named and named[1].lower()
    return LoraFile(
        factors=stacked, differences=differences, roles=roles, expert=told, metadata=metadata, matched=count
    )


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    return next((path / name for name in _FILES if (path / name).is_file()), path)


def _metadata(file: Path) -> dict[str, str]:
    if file.is_dir():
        return {}
    with safe_open(file, framework="numpy") as part:
        return dict(part.metadata() or {})


def _pop_roles(file: Path, tensors: dict[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray | None:
    """Returns the vectors of roles, which are then not among the tensors any more; None where there are none."""
    value = tensors.pop(ROLES_KEY, None)
    if value is not None and shapes.get(VECTORS) != value.shape:
        there = f"has some of {shapes[VECTORS]}" if VECTORS in shapes else "was made without context.kinds"
        raise UserError(
            f"{file} was trained with clips beside, whose roles have vectors of {value.shape}, and this model {there}: "
            "take the run that trained it, or one with the same context.kinds"
        )
    return None if value is None else np.asarray(value, np.float32)


def _sorted(
    tensors: Mapping[str, np.ndarray], places: Mapping[str, AdaptedPlace]
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Returns (tensors by module and what they are of it, keys that are of nothing)."""
    found: dict[str, dict[str, np.ndarray]] = {}
    unmatched = []
    for key, value in tensors.items():
        match = _KEY.fullmatch(_PREFIXES.sub("", key, count=1) if _PREFIXES.match(key) else key)
        module = match["module"] if match else ""
        kind = next((kind for end, kind in _PARTS.items() if match and re.fullmatch(end, match["part"])), "")
        if module not in places or not places[module].takes(kind):
            unmatched.append(key)
        else:
            found.setdefault(module, {})[kind] = np.asarray(value, np.float32)
    return found, unmatched


def _refuse(file: Path, unmatched: list[str], total: int) -> None:
    """Raises UserError for keys that are of nothing in the model."""
    image = [key for key in unmatched if re.search(r"k_img|v_img|add_[kv]_proj|img_emb|image_embedder", key)]
    why = _GIVE
    if len(image) == len(unmatched):
        why = (
            "they are of the attention to an image that I2V and FLF2V of Wan 2.1 have and this model has not: " + _GIVE
        )
    raise UserError(
        f"{file}: {total - len(unmatched)} of {total} keys are of this model, {len(unmatched)} of nothing in it: "
        f"{listed(unmatched)}; {why}"
    )


def _factors(
    file: Path,
    module: str,
    parts: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
    scale: Callable[[str, int], float],
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """Returns (the factors of one map in our form, alpha / r, which is in the second)."""
    if "down" not in parts or "up" not in parts:
        raise UserError(f"{file}: {module} has {', '.join(parts)} alone, and a LoRA is two factors: {_GIVE}")
    down, up = parts["down"], parts["up"]
    in_dim, out_dim = shape[-2:]
    if down.ndim != 2 or up.ndim != 2 or (down.shape[1], up.shape[0], up.shape[1]) != (in_dim, out_dim, len(down)):
        raise UserError(
            f"{file}: the factors of {module} are {down.shape} and {up.shape}, and the map is {in_dim} to {out_dim} "
            f"wide in this model: {_GIVE}"
        )
    if "alpha" in parts and parts["alpha"].size != 1:
        raise UserError(f"{file}: the alpha of {module} is {parts['alpha'].shape}, and one number is one: {_GIVE}")
    times = float(parts["alpha"].reshape(())) / len(down) if "alpha" in parts else scale(module, len(down))
    return (down.T, up.T * np.float32(times)), times


def _stack(
    layers: Mapping[int, tuple[np.ndarray, np.ndarray]], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factors of all layers, of the highest rank of them, the rest zeros: so products are as they were."""
    if len(shape) == 2:
        return layers[0]
    depth, in_dim, out_dim = shape
    rank = max(len(last) for _, last in layers.values())
    first, second = np.zeros((depth, in_dim, rank), np.float32), np.zeros((depth, rank, out_dim), np.float32)
    for layer, (one, other) in layers.items():
        first[layer, :, : len(other)], second[layer, : len(other)] = one, other
    return first, second


def _add(
    file: Path,
    what: str,
    differences: dict[str, np.ndarray],
    place: AdaptedPlace,
    value: np.ndarray,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Adds a difference to that of all layers, in its place."""
    shape = shapes[place.ours]
    here = shape if place.layer is None else shape[1:]
    value = value.T if place.form == "transpose" else value.reshape(here) if value.size == math.prod(here) else value
    if value.shape != here:
        raise UserError(f"{file}: the difference of {what} is {value.shape} instead of {here}: {_GIVE}")
    whole = differences.setdefault(place.ours, np.zeros(shape, np.float32))
    whole[() if place.layer is None else place.layer] += value


def _check_finite(
    file: Path,
    factors: Mapping[str, Mapping[int, tuple[np.ndarray, np.ndarray]]],
    differences: Mapping[str, np.ndarray],
) -> None:
    """Raises UserError for an adapter of which nothing but noise would come."""
    both = [one for layers in factors.values() for pair in layers.values() for one in pair]
    if not all(np.isfinite(one).all() for one in (*both, *differences.values())):
        raise UserError(f"{file} holds numbers that are not finite: {_GIVE}")


def _scale_of(file: Path, metadata: Mapping[str, str], keys: Collection[str]) -> Callable[[str, int], float]:
    """Returns a function of (module, rank) that gives alpha / rank where the file has no tensor of alpha."""
    peft = any(key.startswith(_PEFT) for key in keys)
    config = _adapter_config(file, metadata, peft=peft)
    if peft and config.get("lora_alpha") is None and not any(key.endswith(".alpha") for key in keys):
        where = file if file.is_dir() else file.parent
        logging.warning(
            "%s: PEFT wrote it, and %s has no %s with its alpha, which is taken as the rank: lay that file there",
            *(file, where, _CONFIG),
        )
    root, beside = bool(config.get("use_rslora")), "lora_adapter_metadata" not in metadata

    def told(module: str, usual: str, patterns: str) -> float | None:
        try:
            known = dict(config.get(patterns) or {})
            own = [value for pattern, value in known.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)]
            value = own[-1] if own else config.get(usual)
            return None if value is None else float(value)
        except (TypeError, ValueError, re.error) as error:
            raise UserError(f"{file}: its LoraConfig is damaged ({error}); download it again") from error

    def scale(module: str, rank: int) -> float:
        alpha, known = told(module, "lora_alpha", "alpha_pattern"), told(module, "r", "rank_pattern")
        if beside and known not in (None, rank):
            raise UserError(
                f"{file}: {module} is of rank {rank}, and the {_CONFIG} beside it says {known:g}, as it is of another "
                "adapter: lay each adapter in a folder of its own, with its config"
            )
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if root else rank)

    return scale


def _adapter_config(file: Path, metadata: Mapping[str, str], *, peft: bool) -> dict[str, Any]:
    """Returns the LoraConfig of PEFT that is in the file's head, or beside the file; empty where there is none.

    What lies beside is of a file that has PEFT's keys, or its name.
    """
    beside = (file if file.is_dir() else file.parent) / _CONFIG
    if "lora_adapter_metadata" in metadata:
        config = parse_config(metadata["lora_adapter_metadata"], what=f"{file}: its LoraConfig")
        return {name.removeprefix("transformer."): value for name, value in config.items()}
    return read_config(beside) if peft or file.is_dir() or file.name == _FILES[1] else {}


def described_adapter(file: LoraFile) -> str:
    """Returns what a file holds, in a line."""
    ranks: Iterable[int] = sorted({last.shape[-2] for _, last in file.factors.values()})
    told = ", ".join(f"{name} {file.metadata[name]}" for name in ("base", "trigger", "expert") if name in file.metadata)
    return (
        f"{file.matched} keys, all matched: {len(file.factors)} kinds of maps of rank {', '.join(map(str, ranks))}"
        f"{f', {len(file.differences)} differences' if file.differences else ''}{f'; {told}' if told else ''}"
    )
