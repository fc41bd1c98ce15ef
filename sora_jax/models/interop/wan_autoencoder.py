"""The public Wan autoencoder weights: their names and shapes to ours and back, one to one.

Two layouts of names, told apart by themselves: that of diffusers' `AutoencoderKLWan`, and the "original" one of Wan's
own `vae2_1.py` and `vae2_2.py`. Theirs: kernels are (out, in, time, height, width), without the time where they see
single frames, and scales are (C, 1, 1, 1). Ours: (time, height, width, in, out) and (C,). Nothing else differs.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig, encoder_dims
from sora_jax.models.interop.json_files import read_config
from sora_jax.models.interop.wan_names import LAYOUTS, Layout
from sora_jax.models.interop.weights import WEIGHTS_FILE, HostParams, check_names, listed, read_shapes, read_weights

Shapes = Mapping[str, tuple[int, ...]]

_CLASS = "AutoencoderKLWan"
_ORIGINAL_WEIGHTS = "wan_vae.safetensors"
_REMEDY = "give the weights of a Wan 2.1 or 2.2 video autoencoder"
# Wan encodes so many frames at a time, after the first.
_FRAMES_AT_ONCE = 4

# Our parts of a name -> theirs; what is not here is called the same, or lies in a level.
_PARTS: dict[Layout, dict[str, str]] = {
    "diffusers": {
        "encoder.quant_conv": "quant_conv",
        "decoder.post_quant_conv": "post_quant_conv",
        "head.norm": "norm_out",
        "head.conv": "conv_out",
        "middle.before": "mid_block.resnets.0",
        "middle.attention": "mid_block.attentions.0",
        "middle.after": "mid_block.resnets.1",
        "shortcut": "conv_shortcut",
        "kernel": "weight",
        "scale": "gamma",
    },
    "original": {
        "encoder.quant_conv": "conv1",
        "decoder.post_quant_conv": "conv2",
        "conv_in": "conv1",
        "head.norm": "head.0",
        "head.conv": "head.2",
        "middle.before": "middle.0",
        "middle.attention": "middle.1",
        "middle.after": "middle.2",
        "norm1": "residual.0",
        "conv1": "residual.2",
        "norm2": "residual.3",
        "conv2": "residual.6",
        "kernel": "weight",
        "scale": "gamma",
    },
}
_STEPS = {"space": "resample.1", "time": "time_conv"}


def config_of(path: str | Path) -> AutoencoderConfig:
    """Returns the shape of the autoencoder whose weights lie at `path`, as the shapes of its tensors tell it.

    `path` is as for `load_wan_autoencoder`. Raises UserError for weights of anything else.
    """
    found = read_shapes(path)
    config = _inferred(found, path)
    wanted = {name: _their_shape(ours, shape) for ours, (name, shape) in _names(config, _layout(found, path)).items()}
    check_names(found=found, wanted=wanted, what=str(path), remedy=_REMEDY)
    wrong = [f"{name} is {found[name]} instead of {shape}" for name, shape in wanted.items() if found[name] != shape]
    if wrong:
        raise UserError(f"{path} is no autoencoder of one shape: {listed(wrong)}; {_REMEDY}")
    return config


def load_wan_autoencoder(path: str | Path, config: AutoencoderConfig) -> HostParams:
    """Returns our parameters, float32 on the host, of the Wan weights at `path`, in either layout.

    UserError if they are absent, damaged, or not those of `config`.

    Args:
      path: One .safetensors file, or a folder as diffusers saves it. Pickled weights are not read.
      config: The shape, as `config_of` gives it.
    """
    if (found := config_of(path)) != config:
        differing = [field.name for field in dataclasses.fields(config)]
        differing = [name for name in differing if getattr(found, name) != getattr(config, name)]
        said = "; ".join(f"{name} {getattr(found, name)}, not {getattr(config, name)}" for name in differing)
        raise UserError(f"{path} has another shape than the config: {said}; take the shape from the file")
    weights = read_weights(path)
    return {
        ours: _to_ours(weights[name], shape) for ours, (name, shape) in _names(config, _layout(weights, path)).items()
    }


def latent_statistics(path: str | Path, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (mean_C, scale_C) of the latents, float64, from the config.json beside the weights; None without one.

    Raises UserError where it is damaged, or does not say of each of the `channels` a mean and a positive scale.
    """
    path = Path(path)
    file = (path.parent if path.suffix == ".safetensors" else path) / "config.json"
    known = read_config(file, remedy="download it again, or remove it")
    try:
        mean_C, scale_C = (np.array(known[key], np.float64) for key in ("latents_mean", "latents_std"))
    except KeyError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); download it again, or remove it") from error
    if not mean_C.shape == scale_C.shape == (channels,) or not (np.isfinite(mean_C).all() and (scale_C > 0).all()):
        raise UserError(
            f"{file} must have {channels} latents_mean and as many latents_std above 0, one for each channel of the "
            "latent; correct it, or remove it to have them measured"
        )
    return mean_C, scale_C


def save_wan_autoencoder(
    folder: str | Path,
    config: AutoencoderConfig,
    params: Mapping[str, Any],
    mean_C: np.ndarray,
    scale_C: np.ndarray,
    layout: Layout = "diffusers",
) -> Path:
    """Writes our parameters under Wan's names, and returns the file of the weights.

    A config.json is written beside: for diffusers what `AutoencoderKLWan.from_pretrained` reads. The original layout
    knows no such file; there it holds the statistics alone.

    Wan's code takes four frames at a time, so what it encodes are clips of 1 + 4k frames whatever the temporal stride.

    Raises UserError where Wan cannot express `config`, and for a folder that holds weights already, or has the name of
    a file: its statistics, which no file of weights holds, would be sought beside it.

    Args:
      folder: Made if it is not there.
      config: Shape of the autoencoder.
      params: Its parameters by name, arrays of numpy or jax.
      mean_C: Mean of each latent channel.
      scale_C: Standard deviation of each latent channel.
      layout: Of the names.
    """
    folder = Path(folder)
    if folder.suffix == ".safetensors":
        raise UserError(f"{folder}: an autoencoder is a folder of weights and a config.json: give the name of a folder")
    if problems := _inexpressible(config, layout):
        raise UserError(f"Wan's {layout} layout cannot express this autoencoder: {'; '.join(problems)}")
    file = folder / (WEIGHTS_FILE if layout == "diffusers" else _ORIGINAL_WEIGHTS)
    if file.exists() or (folder / "config.json").exists():
        raise UserError(f"{folder} holds a model already: give an empty folder, or a new one")
    table = _names(config, layout)
    weights = {name: _to_theirs(np.asarray(params[ours]), ours) for ours, (name, _) in table.items()}
    statistics = {"latents_mean": mean_C.tolist(), "latents_std": scale_C.tolist()}
    foreign = _foreign_config(config) | statistics if layout == "diffusers" else statistics
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, file, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(foreign, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}") from error
    return file


def _inferred(found: Shapes, path: str | Path) -> AutoencoderConfig:
    """Returns the shape that the tensors have if they are those of an autoencoder at all."""
    layout = _layout(found, path)
    part = _PARTS[layout].get
    norm_out = _PARTS[layout]["head.norm"]
    needed = {
        "first": f"encoder.{part('conv_in', 'conv_in')}.weight",
        "last": f"encoder.{norm_out}.gamma",
        "decoder": f"decoder.{norm_out}.gamma",
        "latent": f"{_PARTS[layout]['decoder.post_quant_conv']}.weight",
    }
    missing = [name for name in needed.values() if len(found.get(name, ())) < 2 or 0 in found[name]]
    if missing:
        raise UserError(f"{path} lacks {listed(missing)}; {_REMEDY}")
    first, last, decoder, latent = (found[name] for name in needed.values())
    half = {"diffusers": r"coder\.(down|up)_blocks", "original": r"coder\.(down|up)samples"}[layout]
    block = {"diffusers": r".*conv1\.weight", "original": r".*residual\.2\.weight"}[layout]
    steps = sorted((name for name in found if re.fullmatch(f"en{half}.*resample.1.weight", name)), key=_natural)
    # At least 1, so that what is no autoencoder is described by the shapes that it should have.
    multipliers = [max(width // first[0], 1) for width in (*(found[name][0] for name in steps), last[0])]
    blocks, decoder_blocks = (sum(bool(re.fullmatch(f"{end}{half}{block}", n)) for n in found) for end in ("en", "de"))
    return AutoencoderConfig(
        patch=max(math.isqrt(first[1] // 3), 1),
        width=first[0],
        multipliers=tuple(multipliers),
        space_down=(True,) * len(steps),
        time_down=tuple(name.replace("resample.1", "time_conv") in found for name in steps),
        blocks=blocks // len(multipliers),
        decoder_width=max(decoder[0] // multipliers[0], 1),
        decoder_blocks=decoder_blocks // len(multipliers),
        channels=latent[0],
        attention=True,
        shortcuts=any(re.match(r"encoder\.down(_blocks|samples)\.0\.(resnets|downsamples)\.", name) for name in found),
        patch_kernel=3,
        linear_heads=False,
        bottleneck="kl",
        codes=None,
        remat=False,
    )


def _natural(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _layout(names: Mapping[str, Any], path: str | Path) -> Layout:
    """Returns the layout of the names; raises UserError if it is neither."""
    for layout in LAYOUTS:
        if f"encoder.{_PARTS[layout].get('conv_in', 'conv_in')}.weight" in names:
            return layout
    raise UserError(f"{path} holds no Wan autoencoder, but {listed(sorted(names))}; {_REMEDY}")


@functools.cache
def _names(config: AutoencoderConfig, layout: Layout) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns by our name (their name, our shape) of every parameter."""
    _, ours, _ = abstract_model(lambda key: Autoencoder(config, rngs=Rngs(key)))
    return {name: (_their_name(name, config, layout), tuple(value.shape)) for name, value in ours.items()}


def _their_name(ours: str, config: AutoencoderConfig, layout: Layout) -> str:
    parts = _PARTS[layout]
    # In one pass, as what stands for one part may be our name of another.
    name = re.sub("|".join(rf"\b{re.escape(part)}\b" for part in parts), lambda found: parts[found[0]], ours)
    level = r"(?P<half>\w+)\.levels\.(?P<level>\d+)\.(blocks\.(?P<block>\d+)|(?P<step>space|time))"
    return re.sub(level, lambda found: _in_level(config, layout, **found.groupdict()), name)


def _in_level(
    config: AutoencoderConfig, layout: Layout, *, half: str, level: str, block: str | None, step: str | None
) -> str:
    """Returns where a residual block, or a step in space or time, of a level lies.

    Wan 2.2, whose levels have shortcuts, keeps the parts of a level together; before, they mostly stood in one row.
    """
    way = "down" if half == "encoder" else "up"
    blocks = config.blocks if half == "encoder" else config.decoder_blocks
    within = blocks if block is None else int(block)
    end = "" if step is None else f".{_STEPS[step]}"
    place = int(level) * (blocks + 1) + within
    if layout == "original" and config.shortcuts:
        return f"{half}.{way}samples.{level}.{way}samples.{within}{end}"
    if layout == "original":
        return f"{half}.{way}samples.{place}{end}"
    if half == "encoder" and not config.shortcuts:
        return f"{half}.down_blocks.{place}{end}"
    sampler = f"{way}sampler" if config.shortcuts else f"{way}samplers.0"
    return f"{half}.{way}_blocks.{level}.{sampler if block is None else f'resnets.{block}'}{end}"


def _their_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if ours.endswith(".bias"):
        return shape
    if ours.endswith(".scale"):
        return (*shape, 1, 1) if ".attention." in ours else (*shape, 1, 1, 1)
    *sides, in_dim, out_dim = shape
    if ".attention." in ours:
        sides = [1, 1]
    elif ".space." in ours:
        sides = sides[1:]
    return (out_dim, in_dim, *sides)


def _to_ours(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(array, np.float32)
    if len(shape) == 1:
        return array.reshape(shape)
    return np.ascontiguousarray(np.moveaxis(array.reshape(*shape[:-3:-1], *shape[:-2]), (1, 0), (-2, -1)))


def _to_theirs(array: np.ndarray, ours: str) -> np.ndarray:
    shape = _their_shape(ours, array.shape)
    moved = array if array.ndim == 1 else np.moveaxis(array, (-1, -2), (0, 1))
    return np.ascontiguousarray(moved, np.float32).reshape(shape)


def _inexpressible(config: AutoencoderConfig, layout: Layout) -> list[str]:
    """Returns what Wan does not have, in words."""
    problems = []
    if not config.attention:
        problems.append("attention is False, and the middle of Wan attends")
    if config.bottleneck != "kl":
        problems.append(f"bottleneck is {config.bottleneck!r}, and Wan has only 'kl'")
    if config.patch_kernel != 3:
        problems.append(f"patch_kernel is {config.patch_kernel}, and Wan's is 3")
    if config.linear_heads:
        problems.append("linear_heads is True, and Wan's heads see normalised features alone")
    if not all(config.space_down):
        problems.append(f"space_down is {config.space_down}, and Wan halves space between all levels")
    if config.time_stride > _FRAMES_AT_ONCE:
        problems.append(f"the temporal stride is {config.time_stride}, and Wan takes {_FRAMES_AT_ONCE} frames at once")
    if config.decoder_blocks != config.blocks + 1:
        problems.append(f"decoder_blocks is {config.decoder_blocks}, and Wan has blocks + 1 = {config.blocks + 1}")
    if config.shortcuts:
        factors = [4 * (1 + time) for time in config.time_down] + [1]
        for level, ((ins, outs), factor) in enumerate(zip(encoder_dims(config), factors, strict=True)):
            if ins * factor % outs:
                problems.append(f"level {level} has no shortcut, as {ins} x {factor} channels give no whole {outs}")
    if layout == "original":
        patch = 2 if config.shortcuts else 1
        if config.patch != patch:
            problems.append(f"patch is {config.patch}, and with shortcuts {config.shortcuts} Wan has {patch}")
        if not config.shortcuts and len(config.multipliers) > 4:
            problems.append(f"there are {len(config.multipliers)} levels, and Wan 2.1 has 4 at most")
    return problems


def _foreign_config(config: AutoencoderConfig) -> dict[str, Any]:
    """Returns the config.json of diffusers, but for the statistics."""
    return {
        "_class_name": _CLASS,
        "base_dim": config.width,
        "decoder_base_dim": config.decoder_width,
        "z_dim": config.channels,
        "dim_mult": list(config.multipliers),
        "num_res_blocks": config.blocks,
        "attn_scales": [],
        "temperal_downsample": list(config.time_down),
        "dropout": 0.0,
        "is_residual": config.shortcuts,
        "in_channels": 3 * config.patch**2,
        "out_channels": 3 * config.patch**2,
        "patch_size": None if config.patch == 1 else config.patch,
        "scale_factor_temporal": config.time_stride,
        "scale_factor_spatial": config.space_stride,
    }
