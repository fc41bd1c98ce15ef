"""The config of a run as frozen dataclasses: read once, checked as a whole, before anything compiles."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from sora_jax.checkpoints.retention import CheckpointConfig
from sora_jax.core.config import at_least_one, build
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig
from sora_jax.core.paths import expanded
from sora_jax.core.precision import Precision
from sora_jax.data.curation.measures import CurationConfig
from sora_jax.data.packing.pipeline import PackingConfig
from sora_jax.data.sources.prefixed import prefix_faults
from sora_jax.data.sources.shapes_prompts import MOST_PROMPTS, heldout_prompts
from sora_jax.data.sources.shapes_world import WorldConfig
from sora_jax.diffusion.guidance import GuidanceConfig
from sora_jax.experiment.ranges import out_of_range
from sora_jax.experiment.stage_settings import STAGE_KINDS, AutoencoderStage, DiffusionStage, StageConfig
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.codec import CodecConfig
from sora_jax.models.discriminator import DiscriminatorConfig
from sora_jax.models.interop.wan_autoencoder import config_of
from sora_jax.models.text import build_encoder
from sora_jax.models.text.encoder import TextConfig, TextEncoder
from sora_jax.models.transformer import TransformerConfig
from sora_jax.objectives.autoencoder import AutoencoderLossConfig
from sora_jax.objectives.diffusion import DiffusionConfig
from sora_jax.train.guard import GuardConfig
from sora_jax.train.optimizer import OptimizerConfig
from sora_jax.train.reporter import LogConfig
from sora_jax.train.state import EmaConfig
from sora_jax.train.workdir import MAIN
from sora_jax.video import shapes

# The last names of keys that are paths.
_PATH_KEYS = {"path", "captions", "table", "weights", "perceptual_weights", "start_from"}
# What a source needs and how it is given.
_PATHS = {
    "folder": "a folder: pass --config.{key}.path=DIR",
    "webdataset": "tar files: pass --config.{key}.path=FILE.tar, a folder of them or a pattern",
    "arrayrecord": "records: pass --config.{key}.path=FILE.arrayrecord or a folder of such files",
    "tfds": "a data set: pass --config.{key}.path=DIR/NAME/VERSION, or that#SPLIT",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from and how large they may be; see `configs/base.py`."""

    source: Literal["shapes", "folder", "webdataset", "arrayrecord", "tfds"]
    path: str | None
    captions: str | None
    prefix: str | None
    max_frames: int
    fps: float | None
    min_tokens: int
    max_tokens: int
    square_crop: bool
    max_bad_share: float
    readers: int
    curation: CurationConfig

    def __post_init__(self):
        at_least_one(self, "max_frames", "min_tokens", "readers")
        if self.min_tokens > self.max_tokens:
            raise UserError(f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}")
        if self.fps is not None and self.fps <= 0:
            raise UserError(f"fps {self.fps:g} must be more than 0, or None for each clip's own rate")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"max_bad_share {self.max_bad_share} is outside [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """The drawn world; see `data.shapes_world.WorldConfig`."""

    num_clips: int
    sides: tuple[tuple[int, int], ...]
    frames: tuple[int, ...]
    image_share: float
    fps: tuple[float, ...]
    max_objects: int
    occluder: bool

    def world(self, *, seed: int, split: str, num_clips: int | None = None) -> WorldConfig:
        """Returns the world of one split; `num_clips` overrides the number that training draws."""
        fields = dataclasses.asdict(self)
        if num_clips is not None:
            fields["num_clips"] = num_clips
        return WorldConfig(seed=seed, split="heldout" if split == "heldout" else "train", **fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The solver, and what is sampled as training proceeds."""

    steps: int
    solver: Literal["euler", "heun", "dpm", "unipc", "stochastic"]
    shift_base_tokens: float | None
    fps: float
    prompts: tuple[str, ...]
    size: tuple[int, int]
    frames: int
    window: int | None
    overlap: int | None
    max_seconds: float
    guidance: GuidanceConfig
    known_guidance: float
    cache: float

    def __post_init__(self):
        at_least_one(self, "steps")
        for name, frames in (("window", self.window), ("overlap", self.overlap)):
            if frames is not None and frames < 1:
                raise UserError(f"{name} {frames} must be at least 1, or None")
        if self.window is not None and self.overlap is not None and self.overlap >= self.window:
            raise UserError(f"overlap {self.overlap} leaves nothing of the window {self.window} to be made")
        if self.cache < 0:
            raise UserError(f"cache {self.cache:g} is negative; 0 is none")
        if self.known_guidance < 0:
            raise UserError(f"known_guidance {self.known_guidance:g} is negative; 1 is no guidance")
        if self.fps <= 0:
            raise UserError(f"fps {self.fps:g} must be more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How much is held out and judged."""

    prompts: int
    draws: int
    clips: int
    tasks: int

    def __post_init__(self):
        at_least_one(self, "draws", "clips")
        if self.tasks and not 2 <= self.tasks <= MOST_PROMPTS:
            raise UserError(f"evaluation.tasks {self.tasks} must be 0, or 2 to {MOST_PROMPTS}")
        if self.prompts:
            heldout_prompts(self.prompts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a run is told, by the names of `configs/base.py`.

    With `autoencoder_weights`, there `autoencoder.weights`, `autoencoder` is the shape of these. With these, or with
    `autoencoder_start_from`, there `autoencoder.start_from`, `run` has no stages that train one.
    """

    seed: int
    precision: Precision | None
    run: tuple[str, ...]
    mesh: MeshConfig
    data: DataConfig
    more_data: dict[str, DataConfig]
    shapes: ShapesConfig
    autoencoder: AutoencoderConfig
    autoencoder_weights: str | None
    autoencoder_start_from: str | None
    autoencoder_loss: AutoencoderLossConfig
    perceptual_weights: str | None
    discriminator: DiscriminatorConfig
    codec: CodecConfig
    transformer: TransformerConfig
    text: TextConfig
    packing: PackingConfig
    diffusion: DiffusionConfig
    ema: EmaConfig
    optimizer: OptimizerConfig
    stages: dict[str, StageConfig]
    checkpoint: CheckpointConfig
    log: LogConfig
    guard: GuardConfig
    sampling: SamplingConfig
    evaluation: EvaluationConfig

    @property
    def collections(self) -> dict[str, DataConfig]:
        """All collections by name, the first one called MAIN."""
        return {MAIN: self.data, **self.more_data}

    @functools.cached_property
    def text_encoder(self) -> TextEncoder:
        """The text encoder: it may hold files, so there is one."""
        return build_encoder(self.text)

    @property
    def longest(self) -> int:
        """Frames of the longest clip that training may see."""
        seen = (
            max(self.shapes.frames) if one.source == "shapes" else one.max_frames for one in self.collections.values()
        )
        return max(seen)

    @property
    def stride(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels that one latent position stands for."""
        space = self.autoencoder.space_stride
        return self.autoencoder.time_stride, space, space

    @property
    def token_stride(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels that one token stands for."""
        time, height, width = self.transformer.patch
        return self.stride[0] * time, self.stride[1] * height, self.stride[2] * width

    @property
    def patch_width(self) -> int:
        """P, the numbers in a token."""
        time, height, width = self.transformer.patch
        return time * height * width * self.autoencoder.channels


def read_settings(config: Any) -> Settings:
    """Returns the settings of a config (a ConfigDict, or what is in config.json).

    Raises UserError saying all that is misspelt, missing or impossible.
    """
    if "stages" not in config or "run" not in config:
        raise UserError("the config needs `run` and `stages`; start it from configs/base.py")
    problems = out_of_range(config)
    if problems:
        raise UserError("; ".join(problems))
    config = _with_homes(config)
    stages: dict[str, StageConfig] = {}
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
        trained = {name for name, stage in settings.stages.items() if isinstance(stage, AutoencoderStage)}
        settings = dataclasses.replace(settings, run=tuple(name for name in settings.run if name not in trained))
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
    missing = [f"config.autoencoder.{name} is missing" for name in ("weights", "start_from") if name not in shape]
    if missing:
        raise UserError("; ".join(missing))
    weights, start = shape.pop("weights"), shape.pop("start_from")
    if isinstance(weights, str):
        shape |= dataclasses.asdict(config_of(weights))
    return {**tree, "autoencoder": shape, "autoencoder_weights": weights, "autoencoder_start_from": start}


def _read_stage(tree: Any, path: str) -> StageConfig:
    kind = tree.get("kind") if hasattr(tree, "get") else None
    if kind not in STAGE_KINDS:
        raise UserError(f"{path}.kind {kind!r} is none of {', '.join(STAGE_KINDS)}")
    return build(STAGE_KINDS[kind], tree, path)


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
    kinds = [settings.stages[name].kind for name in settings.run if name in settings.stages]
    order = sorted(kinds, key=list(STAGE_KINDS).index)
    given = settings.autoencoder_weights is not None or settings.autoencoder_start_from is not None
    needed = {"prepare"} if given else {"autoencoder"}
    needed |= {"prepare"} if "diffusion" in kinds else set()
    if kinds != order or not needed <= set(kinds) or kinds.count("prepare") > 1:
        first = "" if given else "autoencoder stages, one or more, then "
        problems.append(
            f"run has stages of kinds {', '.join(kinds) or 'none'}; it must be {first}one of prepare, then any number "
            "of diffusion"
        )
    if settings.autoencoder_weights is not None and settings.autoencoder_start_from is not None:
        problems.append("autoencoder.weights and autoencoder.start_from are both given: the autoencoder is of one")
    if (settings.autoencoder_loss.perceptual > 0) != (settings.perceptual_weights is not None):
        problems.append(
            f"autoencoder_loss.perceptual {settings.autoencoder_loss.perceptual:g} with perceptual_weights "
            f"{settings.perceptual_weights}: the term needs its network, and the network a weight above 0"
        )
    try:
        settings.codec.check(settings.autoencoder)
    except UserError as error:
        problems.append(str(error))
    if settings.seed < 0:
        problems.append(f"seed {settings.seed} must be 0 or more")
    elif any(data.source == "shapes" for data in settings.collections.values()):
        try:
            settings.shapes.world(seed=settings.seed, split="train")
        except UserError as error:
            problems.append(f"shapes: {error}")
    for name, data in settings.collections.items():
        key = "data" if name == MAIN else f"more_data.{name}"
        problems += _data_conflicts(key, data, settings.packing)
    return problems + _text_conflicts(settings) + _bucket_conflicts(settings) + _collection_conflicts(settings)


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


def _bucket_conflicts(settings: Settings) -> list[str]:
    """Returns which windows of autoencoder stages are not on its strides, with the nearest that are."""
    problems = []
    for name, stage in settings.stages.items():
        for bucket in stage.crops.buckets if isinstance(stage, AutoencoderStage) and name in settings.run else ():
            try:
                shapes.latent_grid(bucket[:3], settings.stride)
            except UserError as error:
                problems.append(f"stages.{name}.crops.buckets {bucket}: {error}")
    return problems


def _data_conflicts(key: str, data: DataConfig, packing: PackingConfig) -> list[str]:
    """Returns what cannot work in one collection, in words."""
    problems = []
    if data.max_tokens > packing.tokens:
        problems.append(f"{key}.max_tokens {data.max_tokens} exceeds a row's packing.tokens {packing.tokens}")
    if data.source in _PATHS and not data.path:
        problems.append(f"{key}.source {data.source!r} needs {_PATHS[data.source].format(key=key)}")
    if data.captions is not None and data.source != "folder":
        problems.append(f"{key}.captions is for source 'folder': {data.source!r} has its own, set None")
    if data.fps is not None and data.source == "shapes":
        problems.append(f"{key}.fps {data.fps:g} is for clips that are decoded: set shapes.fps instead")
    if data.source == "shapes" and not data.curation.off:
        problems.append(f"{key}.curation is for clips in files: {key}.source 'shapes' draws its own, turn it off")
    return problems


def _collection_conflicts(settings: Settings) -> list[str]:
    """Returns what is wrong with the names of collections, in words."""
    problems = [
        f"more_data.{name}: a collection's name is made of a to z, 0 to 9 and _, and is not {MAIN!r}"
        for name in settings.more_data
        if name == MAIN or not re.fullmatch("[a-z0-9_]+", name)
    ]
    for stage, config in settings.stages.items():
        unknown = config.mix.collections.keys() - settings.collections if isinstance(config, DiffusionStage) else ()
        if unknown:
            problems.append(
                f"stages.{stage}.mix.collections names {', '.join(sorted(unknown))}; there are "
                f"{', '.join(settings.collections)}"
            )
    return problems
