"""What a public model brings to a config: the shapes of its files, and how it was made to be sampled."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from sora_jax.core.config_files import load_config
from sora_jax.core.errors import UserError
from sora_jax.models.interop import variants
from sora_jax.models.interop.model_folder import ModelFiles, find_model
from sora_jax.models.interop.variants import Variant

# What of the transformer is how it is computed and trained, not what it is: that stays as the config has it.
_OWN = ("attention", "exchange", "remat", "lora", "base_width")
# Encoders whose weights come with a package, by the width of what they give; others lie in the model's folder.
_ENCODERS = {384: "minilm"}
_CHUNK_FRAMES = 4
# Rows of the sampler are as long as a video needs: those of the layout hold no more than an image.
_ROW = {"tokens": 128, "text_tokens": variants.TEXT_TOKENS, "segments": 1, "rows": 1}


def with_model(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config with what its `model` brings, as it is where there is none.

    Shapes and what the network predicts are the model's. All else is the model's where the config has it as
    configs/base.py, so that who says otherwise is heard. Raises UserError as `find_model`, and where a part is missing.
    """
    if tree.get("model") is None:
        return dict(tree)
    files = find_model(tree["model"])
    result = _plain(tree)
    base = _plain(load_config("configs/base.py"))
    given = _brought(files, result, base)
    for group, values in given.items():
        _fill(result[group], values, base[group])
    shape = files.shape.config(
        time_rate=files.variant.time_rate, **{name: result["transformer"].get(name) for name in _OWN[:3]}
    )
    result["transformer"] |= {
        field.name: getattr(shape, field.name) for field in dataclasses.fields(shape) if field.name not in _OWN
    }
    result["diffusion"]["path"]["prediction"] = "velocity"
    if files.image is not None and result.get("image_encoder") is None:
        result["image_encoder"] = str(files.image)
    return result


def warn_of_unheard(config: Mapping[str, Any], keys: Collection[str]) -> None:
    """Says of which of these keys, that a user gave, the model has a value of its own; raises as `with_model`."""
    if not keys or config.get("model") is None:
        return
    given, used = _flat(_plain(config)), _flat(with_model(config))
    lost = [f"{key} {used[key]} and not {given[key]}" for key in keys if key in given and used[key] != given[key]]
    if lost:
        logging.warning(
            "the model has %s: its shapes are always its own, and a value that is that of configs/base.py cannot be "
            "told from none: start from configs/wan_lora.py or configs/wan_finetune.py, where it counts",
            ", ".join(lost),
        )


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Returns all values of a tree by their whole names, which `before` begins."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found


def _plain(tree: Any) -> Any:
    """Returns a config as dictionaries, sequences in it as tuples."""
    if isinstance(tree, ConfigDict | Mapping):
        return {name: _plain(tree[name]) for name in tree}
    return tuple(map(_plain, tree)) if isinstance(tree, list | tuple) else tree


def _fill(group: dict[str, Any], values: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Puts values in the place of those that are as in the base config, also within groups."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            _fill(group[name], value, base[name])
        elif group.get(name) == base.get(name):
            group[name] = value


def _brought(files: ModelFiles, tree: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Returns by group what a model brings where the config has nothing of its own."""
    brought = {"autoencoder": _autoencoder(files, tree), "text": _text(files, tree, base)}
    # A config written for public models says all of the rest, also where that is as in the base config.
    if tree["transformer"].get("text_pad_to") is not None:
        return brought
    return brought | {
        # As a whole: a config that has rows of its own may have as many as the base config. They must hold a text.
        "packing": _ROW if tree["packing"] == base["packing"] else {"text_tokens": variants.TEXT_TOKENS},
        # Of large frames few at once; it changes no number.
        "codec": {"chunk_frames": _CHUNK_FRAMES},
        "sampling": _sampling(files.variant),
    }


def _sampling(variant: Variant) -> dict[str, Any]:
    high, low = variant.guidance
    return {
        "steps": variant.steps,
        "solver": "unipc",
        "grid": "wan",
        "shift": variant.shift,
        "fps": variant.fps,
        "size": variant.sizes[0],
        "frames": variant.frames,
        "window": variant.frames,
        "guidance": {"scale": high, "interval": (0.0, 1.0)},
        "low_guidance": low if variant.experts > 1 else None,
        "known_guidance": high,
    }


def _autoencoder(files: ModelFiles, tree: Mapping[str, Any]) -> dict[str, Any]:
    group = tree["autoencoder"]
    if group.get("weights") is not None or group.get("start_from") is not None:
        return {}
    if files.autoencoder is None:
        raise UserError(files.lacks("autoencoder"))
    return {"weights": str(files.autoencoder)}


def _text(files: ModelFiles, tree: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    own = tree["text"]
    if own["encoder"] not in (base["text"]["encoder"], "umt5") or own.get("weights") is not None:
        return {"max_tokens": variants.TEXT_TOKENS}
    if files.text is not None:
        # The encoder finds its tokenizer in the folder that holds both.
        return {"encoder": "umt5", "weights": str(files.text), "max_tokens": variants.TEXT_TOKENS}
    if files.shape.text_dim in _ENCODERS:
        return {"encoder": _ENCODERS[files.shape.text_dim], "max_tokens": variants.TEXT_TOKENS}
    raise UserError(files.lacks("text"))
