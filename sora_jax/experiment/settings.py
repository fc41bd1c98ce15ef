"""Reads the config of a run: once, checked as a whole, before anything compiles."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from sora_jax.core.config import build
from sora_jax.core.errors import UserError
from sora_jax.core.paths import expanded
from sora_jax.core.precision import Precision
from sora_jax.data.packing.pipeline import PackingConfig
from sora_jax.data.sources.prefixed import prefix_faults
from sora_jax.data.sources.table import SOURCES
from sora_jax.experiment.adapters import with_adapter_stages
from sora_jax.experiment.kinds import KINDS
from sora_jax.experiment.model_settings import with_model
from sora_jax.experiment.ranges import out_of_range
from sora_jax.experiment.schema import DataConfig, Settings
from sora_jax.experiment.stage_settings import AUTOENCODER, TEXT_TO_VIDEO, Stage
from sora_jax.models.interop.wan_autoencoder import config_of
from sora_jax.train.changes import with_optimizers
from sora_jax.train.workdir import MAIN

# The last names of keys that are paths.
_PATH_KEYS = {
    "model",
    "path",
    "captions",
    "table",
    "weights",
    "perceptual_weights",
    "start_from",
    "image_encoder",
    "image",
    "last_image",
    "captioner",
}


def read_settings(config: Any) -> Settings:
    """Returns the settings of a config (a ConfigDict, or what is in config.json).

    Raises UserError saying all that is misspelt, missing or impossible.
    """
    if "stages" not in config or "run" not in config:
        raise UserError("the config needs `run` and `stages`; start it from configs/base.py")
    problems = out_of_range(config)
    if problems:
        raise UserError("; ".join(problems))
    generators = {name for name, kind in KINDS.items() if kind.stage.trains == TEXT_TO_VIDEO}
    config = with_model(with_adapter_stages(with_optimizers(_with_homes(config)), generators))
    stages: dict[str, Stage] = {}
    for name in config["stages"]:
        try:
            stages[name] = _read_stage(config["stages"][name], f"config.stages.{name}")
        except UserError as error:
            problems.append(str(error))
    try:
        tree = _with_weights({**{key: config[key] for key in config}, "stages": stages})
        settings = build(Settings, tree)
    except UserError as error:
        raise UserError("; ".join([*problems, str(error)])) from error
    if settings.autoencoder_weights is not None or settings.autoencoder_start_from is not None:
        needless = [name for name, stage in settings.stages.items() if stage.trains == AUTOENCODER]
        settings = dataclasses.replace(settings, run=tuple(name for name in settings.run if name not in needless))
    problems = problems or _conflicts(settings)
    if problems:
        raise UserError("; ".join(problems))
    return settings


def for_machine(settings: Settings, *, accelerator: bool) -> Settings:
    """Returns the settings with the precision that they leave open, as it will be on a machine that is not this one."""
    default: Precision = "bfloat16" if accelerator else "float32"
    return dataclasses.replace(settings, precision=settings.precision or default)


def _with_homes(tree: Any, key: str = "") -> Any:
    """Returns the config with homes in the place of each ~ that a path begins with."""
    if isinstance(tree, ConfigDict | Mapping):
        return {name: _with_homes(tree[name], name) for name in tree}
    return expanded(tree) if key in _PATH_KEYS and isinstance(tree, str) else tree


def _with_weights(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the config with where the autoencoder comes from under names of their own, and the shape of weights."""
    group = tree.get("autoencoder")
    if not isinstance(group, ConfigDict | Mapping):
        return tree
    shape = {key: group[key] for key in group}
    # As every key that may be None, these may be missing: so configs of earlier versions open.
    weights, start = shape.pop("weights", None), shape.pop("start_from", None)
    if isinstance(weights, str):
        shape |= dataclasses.asdict(config_of(weights))
    return {**tree, "autoencoder": shape, "autoencoder_weights": weights, "autoencoder_start_from": start}


def _read_stage(tree: Any, path: str) -> Stage:
    kind = tree.get("kind") if hasattr(tree, "get") else None
    if kind not in KINDS:
        raise UserError(f"{path}.kind {kind!r} is none of {', '.join(KINDS)}")
    return build(KINDS[kind].stage, tree, path)


def _conflicts(settings: Settings) -> list[str]:
    """Returns every combination of keys that cannot work, in words."""
    problems = []
    for name in settings.run:
        if name not in settings.stages:
            problems.append(f"run names the stage {name!r}, but stages has {', '.join(settings.stages)}")
        elif not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            problems.append(f"run names the stage {name!r}: its folder is called so; use a to z, A to Z, 0 to 9, _ . -")
    if len(set(settings.run)) < len(settings.run):
        problems.append(f"run names a stage twice: {', '.join(settings.run)}")
    problems += _order_conflicts(settings)
    if settings.autoencoder_weights is not None and settings.autoencoder_start_from is not None:
        problems.append("autoencoder.weights and autoencoder.start_from are both given: the autoencoder is of one")
    if (settings.autoencoder_loss.perceptual > 0) != (settings.perceptual_weights is not None):
        problems.append(
            f"autoencoder_loss.perceptual {settings.autoencoder_loss.perceptual:g} with perceptual_weights "
            f"{settings.perceptual_weights}: the term needs its network, and the network a weight above 0"
        )
    try:
        settings.codec.check(settings.autoencoder)
        if settings.shown is not None:
            settings.shown.check(stride=settings.stride, channels=settings.autoencoder.channels)
            _check_image_width(settings)
    except UserError as error:
        problems.append(str(error))
    if settings.seed < 0:
        problems.append(f"seed {settings.seed} must be 0 or more")
    elif any(data.source == "shapes" for data in settings.collections.values()):
        try:
            settings.shapes.source(seed=settings.seed, split="train")
        except UserError as error:
            problems.append(f"shapes: {error}")
    for name, data in settings.collections.items():
        key = "data" if name == MAIN else f"more_data.{name}"
        problems += _data_conflicts(key, data, settings.packing)
    of_kinds = [said for name, stage in settings.stages.items() for said in KINDS[stage.kind].conflicts(settings, name)]
    return problems + _text_conflicts(settings) + _collection_conflicts(settings) + of_kinds


def _check_image_width(settings: Settings) -> None:
    """Raises UserError where an image encoder is not the one that the transformer was made for."""
    wanted, shown = settings.transformer.image_dim, settings.shown
    if wanted is not None and shown is not None and shown.image_width != wanted:
        raise UserError(
            f"image_encoder {settings.image_encoder} makes tokens of width {shown.image_width}, and "
            f"transformer.image_dim is {wanted}: take the encoder of that model"
        )


def _text_conflicts(settings: Settings) -> list[str]:
    """Returns what is wrong with texts, in words."""
    most, problems = settings.text.max_tokens, []
    if most > settings.packing.text_tokens:
        problems.append(f"text.max_tokens {most} exceeds a row's packing.text_tokens {settings.packing.text_tokens}")
    try:
        tokenizer = settings.text_encoder.tokenizer
    except UserError as error:
        return [*problems, str(error)]
    for name, data in settings.collections.items():
        key = "data" if name == MAIN else f"more_data.{name}"
        faults = prefix_faults(data.prefix, data.source, tokenizer, max_text_tokens=most)
        problems += [f"{key}.{fault}" for fault in faults]
    return problems


def _order_conflicts(settings: Settings) -> list[str]:
    """Returns what is wrong with the order of the run's stages, in words: what each kind must come after."""
    kinds = [settings.stages[name].kind for name in settings.run if name in settings.stages]
    given = [name for name, kind in KINDS.items() if kind.given(settings)]
    faults = [] if kinds else ["none"]
    for place, kind in enumerate(kinds):
        faults += [before for before in KINDS[kind].after if before in kinds[place:]]
        faults += [before for before in KINDS[kind].after if before not in [*kinds[:place], *given]]
        faults += [kind] if KINDS[kind].once and kind in kinds[:place] else []
    if not faults:
        return []
    places = [kind.place.format(kind=name) for name, kind in KINDS.items() if name not in given]
    said = f"run has stages of kinds {', '.join(kinds) or 'none'}; it must be {', then '.join(places)}"
    lacks = AUTOENCODER not in [*kinds, *given]
    return [f"{said}; or give a public model as --config.model=DIR" if lacks else said]


def _data_conflicts(key: str, data: DataConfig, packing: PackingConfig) -> list[str]:
    """Returns what cannot work in one collection, in words."""
    problems = []
    if data.max_tokens > packing.tokens:
        problems.append(f"{key}.max_tokens {data.max_tokens} exceeds a row's packing.tokens {packing.tokens}")
    if data.source in SOURCES and not data.path:
        problems.append(f"{key}.source {data.source!r} needs {SOURCES[data.source].needs.format(key=key)}")
    if data.heldout_share and data.source == "shapes":
        problems.append(f"{key}.heldout_share is for clips in files: the source 'shapes' holds out its own, set None")
    if data.fps is not None and data.source == "shapes":
        problems.append(f"{key}.fps {data.fps:g} is for clips that are decoded: set shapes.fps instead")
    if data.source == "shapes" and not data.curation.off:
        problems.append(f"{key}.curation is for clips in files: {key}.source 'shapes' draws its own, turn it off")
    return problems


def _collection_conflicts(settings: Settings) -> list[str]:
    """Returns what is wrong with the names of collections, in words."""
    return [
        f"more_data.{name}: a collection's name is made of a to z, 0 to 9 and _, and is not {MAIN!r}"
        for name in settings.more_data
        if name == MAIN or not re.fullmatch("[a-z0-9_]+", name)
    ]
