"""The config of a run as frozen dataclasses: read once, checked as a whole, before anything compiles."""

import dataclasses
from typing import Any

from sora_jax.core.config import build
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig
from sora_jax.data.crops import CropConfig
from sora_jax.data.pipeline import PackingConfig
from sora_jax.data.shapes_world import WorldConfig
from sora_jax.diffusion.guidance import GuidanceConfig
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.text.bytes import TextConfig
from sora_jax.models.transformer import TransformerConfig
from sora_jax.objectives.autoencoder import AutoencoderLossConfig
from sora_jax.objectives.diffusion import DiffusionConfig
from sora_jax.train.optimizer import OptimizerConfig, ScheduleConfig
from sora_jax.train.state import EmaConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from and how large they may be; see `configs/base.py`."""

    source: str
    path: str | None
    captions: str | None
    max_frames: int
    min_tokens: int
    max_tokens: int
    max_bad_share: float

    def __post_init__(self):
        if self.source not in ("shapes", "folder"):
            raise UserError(f"data.source {self.source!r} is none of shapes, folder")
        if not 1 <= self.min_tokens <= self.max_tokens:
            raise UserError(
                f"data.min_tokens {self.min_tokens} and data.max_tokens {self.max_tokens} must be at least 1, in order"
            )


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
class TextSettings:
    """The byte encoder and the length of captions."""

    width: int
    depth: int
    heads: int
    max_tokens: int

    def encoder(self) -> TextConfig:
        """Returns the shape of the encoder."""
        return TextConfig(width=self.width, depth=self.depth, heads=self.heads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every_steps: int
    keep: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a stage reports, and when it gives up."""

    every_steps: int
    samples_per_stage: int
    max_skipped_steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The solver, and what is sampled as training proceeds."""

    steps: int
    solver: str
    shift_base_tokens: float | None
    fps: float
    prompts: tuple[str, ...]
    size: tuple[int, int]
    frames: int
    guidance: GuidanceConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How much is held out and judged."""

    prompts: int
    clips: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderStage:
    """Trains the autoencoder on windows of clips."""

    kind: str
    steps: int
    accumulate: int
    schedule: ScheduleConfig
    crops: CropConfig
    optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareStage:
    """Encodes all clips once, to shards."""

    kind: str
    batch: int
    clips_per_shard: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Shares of images and of videos among what a diffusion stage draws."""

    images: float
    videos: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionStage:
    """Trains the transformer on prepared clips."""

    kind: str
    steps: int
    accumulate: int
    schedule: ScheduleConfig
    mix: MixConfig


StageConfig = AutoencoderStage | PrepareStage | DiffusionStage
STAGE_KINDS = {"autoencoder": AutoencoderStage, "prepare": PrepareStage, "diffusion": DiffusionStage}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a run is told, by the names of `configs/base.py`."""

    seed: int
    precision: str | None
    run: tuple[str, ...]
    mesh: MeshConfig
    data: DataConfig
    shapes: ShapesConfig
    autoencoder: AutoencoderConfig
    autoencoder_loss: AutoencoderLossConfig
    transformer: TransformerConfig
    text: TextSettings
    packing: PackingConfig
    diffusion: DiffusionConfig
    ema: EmaConfig
    optimizer: OptimizerConfig
    stages: dict[str, StageConfig]
    checkpoint: CheckpointConfig
    log: LogConfig
    sampling: SamplingConfig
    evaluation: EvaluationConfig

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
    stages: dict[str, StageConfig] = {}
    for name in config["stages"]:
        tree = config["stages"][name]
        kind = tree.get("kind")
        if kind not in STAGE_KINDS:
            raise UserError(f"config.stages.{name}.kind {kind!r} is none of {', '.join(STAGE_KINDS)}")
        stages[name] = build(STAGE_KINDS[kind], tree, f"config.stages.{name}")
    rest = {key: config[key] for key in config if key != "stages"}
    settings = build(Settings, {**rest, "stages": stages})
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    """Raises UserError with every combination of keys that cannot work."""
    problems = []
    for name in settings.run:
        if name not in settings.stages:
            problems.append(f"run names the stage {name!r}, but stages has {', '.join(settings.stages)}")
    kinds = [settings.stages[name].kind for name in settings.run if name in settings.stages]
    order = [kind for kind in STAGE_KINDS if kind in kinds]
    if sorted(kinds, key=list(STAGE_KINDS).index) != kinds or order != list(STAGE_KINDS)[: len(order)]:
        problems.append(f"run has stages of kinds {', '.join(kinds)}; the order is autoencoder, prepare, diffusion")
    if settings.data.max_tokens > settings.packing.tokens:
        problems.append(
            f"data.max_tokens {settings.data.max_tokens} exceeds a row's packing.tokens {settings.packing.tokens}"
        )
    if settings.text.max_tokens > settings.packing.text_tokens:
        problems.append(
            f"text.max_tokens {settings.text.max_tokens} exceeds a row's packing.text_tokens "
            f"{settings.packing.text_tokens}"
        )
    if settings.data.source == "folder" and not settings.data.path:
        problems.append("data.source 'folder' needs a folder: pass --config.data.path=DIR")
    if problems:
        raise UserError("; ".join(problems))
