"""The config of a run as frozen dataclasses, by the names of `configs/base.py`; `settings.py` reads and checks it."""

import dataclasses
import functools

from sora_jax.checkpoints.retention import CheckpointConfig
from sora_jax.core.config import at_least_one
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig
from sora_jax.core.precision import Precision
from sora_jax.data.curation.measures import CurationConfig
from sora_jax.data.packing.pipeline import PackingConfig
from sora_jax.data.scenes.worlds import DrawnWorlds, WorldSplit, WorldsSpec
from sora_jax.data.sources.base import Source
from sora_jax.data.sources.shapes_prompts import MOST_PROMPTS, heldout_prompts
from sora_jax.data.sources.shapes_world import ShapesWorld, Split, WorldConfig
from sora_jax.data.sources.table import SOURCES
from sora_jax.diffusion.grids import Grid
from sora_jax.diffusion.guidance import GuidanceConfig
from sora_jax.diffusion.solvers import METHODS
from sora_jax.experiment.context_settings import ContextConfig
from sora_jax.experiment.stage_settings import AUTOENCODER, TEXT_TO_VIDEO, Stage
from sora_jax.generate.cascade import RefinerConfig, check_refinements
from sora_jax.generate.decoding import CaptioningConfig
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.captioner import CaptionerConfig
from sora_jax.models.codec import CodecConfig
from sora_jax.models.discriminator import DiscriminatorConfig
from sora_jax.models.interop.model_folder import ModelFiles, find_model
from sora_jax.models.text import build_encoder
from sora_jax.models.text.encoder import TextConfig, TextEncoder
from sora_jax.models.transformer_config import TransformerConfig
from sora_jax.models.vision.clip import describe_image_encoder
from sora_jax.objectives.autoencoder import AutoencoderLossConfig
from sora_jax.objectives.captioner import CaptionerLossConfig
from sora_jax.objectives.diffusion import DiffusionConfig
from sora_jax.preparation.caption_filters import RecaptionConfig
from sora_jax.train.guard import GuardConfig
from sora_jax.train.optimizer import OptimizerConfig
from sora_jax.train.reporter import LogConfig
from sora_jax.train.state import EmaConfig
from sora_jax.train.workdir import MAIN
from sora_jax.video.shown import ShownConfig

# Of an image, that the encoder of all public models makes.
_IMAGE_TOKENS = 257


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from and how large they may be; see `configs/base.py`."""

    source: str
    path: str | None
    captions: str | None
    prefix: str | None
    max_frames: int
    fps: float | None
    min_tokens: int
    max_tokens: int
    square_crop: bool
    heldout_share: float | None
    max_bad_share: float
    readers: int
    curation: CurationConfig

    def __post_init__(self):
        at_least_one(self, "max_frames", "min_tokens", "readers")
        if self.source not in ("shapes", *SOURCES):
            names = ", ".join(map(repr, ("shapes", *SOURCES)))
            raise UserError(f"source must be one of {names}, not {self.source!r}")
        if self.min_tokens > self.max_tokens:
            raise UserError(f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}")
        if self.fps is not None and self.fps <= 0:
            raise UserError(f"fps {self.fps:g} must be more than 0, or None for each clip's own rate")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"max_bad_share {self.max_bad_share} is outside [0, 1]")


# What further worlds know nothing of, and what says that there is none of it.
_OF_SHAPES = dict(image_share=0.0, max_objects=1, occluder=False, wordings=None, caption_faults=None, curved_share=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """What is drawn; see `data.sources.shapes_world.WorldConfig`, and with `worlds` `data.scenes.worlds.WorldsSpec`."""

    worlds: tuple[str, ...] | None
    num_clips: int
    sides: tuple[tuple[int, int], ...]
    frames: tuple[int, ...]
    image_share: float
    fps: tuple[float, ...]
    max_objects: int
    occluder: bool
    seed: int | None
    wordings: int | None
    caption_faults: tuple[float, float] | None
    curved_share: float | None

    def world(self, *, seed: int, split: str, num_clips: int | None = None) -> WorldConfig:
        """Returns the world of one split; its own seed, if any, counts, and `num_clips` overrides that of training.

        Captions have faults, and ways bends, in training alone.
        """
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("seed", "worlds")}
        if num_clips is not None:
            fields["num_clips"] = num_clips
        if split == "heldout":
            fields |= {"caption_faults": None, "curved_share": None}
        return WorldConfig(seed=self._own_seed(seed), split="heldout" if split == "heldout" else "train", **fields)

    def worlds_spec(self, *, seed: int, split: WorldSplit, num_clips: int | None = None) -> WorldsSpec:
        """Returns what further worlds, of which there must be some, draw in one split; `num_clips` as of `world`."""
        assert self.worlds is not None
        for name, nothing in _OF_SHAPES.items():
            if (value := getattr(self, name)) != nothing:
                raise UserError(f"{name} {value} with worlds: these have none such, set {nothing}")
        return WorldsSpec(
            seed=self._own_seed(seed),
            num_clips=self.num_clips if num_clips is None else num_clips,
            kinds=self.worlds,
            sides=self.sides,
            frames=self.frames,
            fps=self.fps,
            split=split,
        )

    def _own_seed(self, seed: int) -> int:
        return seed if self.seed is None else self.seed

    def source(self, *, seed: int, split: Split, num_clips: int | None = None) -> Source:
        """Returns the clips of one split, of the drawn world or of further ones; `num_clips` as of `world`."""
        if self.worlds is None:
            return ShapesWorld(self.world(seed=seed, split=split, num_clips=num_clips))
        return DrawnWorlds(self.worlds_spec(seed=seed, split=split, num_clips=num_clips))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The solver, and what is sampled as training proceeds."""

    steps: int
    solver: str
    grid: str | None
    shift: float | None
    shift_base_tokens: float | None
    fps: float
    prompts: tuple[str, ...] | None
    image: str | None
    last_image: str | None
    size: tuple[int, int]
    frames: int
    window: int | None
    overlap: int | None
    max_seconds: float
    guidance: GuidanceConfig
    low_guidance: float | None
    known_guidance: float
    forget_context: bool
    context_steps: int | None
    refine: tuple[tuple[str, int], ...] | None
    refiner: RefinerConfig
    cache: float
    captioner: str | None

    def __post_init__(self):
        at_least_one(self, "steps", *(["context_steps"] if self.context_steps is not None else []))
        if self.solver not in METHODS:
            raise UserError(f"solver {self.solver!r} is not one of: {', '.join(METHODS)}")
        for name, frames in (("window", self.window), ("overlap", self.overlap)):
            if frames is not None and frames < 1:
                raise UserError(f"{name} {frames} must be at least 1, or None")
        if self.window is not None and self.overlap is not None and self.overlap >= self.window:
            raise UserError(f"overlap {self.overlap} leaves nothing of the window {self.window} to be made")
        if self.cache < 0:
            raise UserError(f"cache {self.cache:g} is negative; 0 is none")
        check_refinements(self.refine or ())
        for name, scale in (("known_guidance", self.known_guidance), ("low_guidance", self.low_guidance)):
            if scale is not None and scale < 0:
                raise UserError(f"{name} {scale:g} is negative; 1 is no guidance")
        if (self.grid is None) != (self.shift is None):
            raise UserError(f"grid {self.grid!r} with shift {self.shift}: give both, or neither")
        if self.fps <= 0:
            raise UserError(f"fps {self.fps:g} must be more than 0")
        self.public_grid()

    def public_grid(self) -> Grid | None:
        """Returns the schedule of a public model; None where it is that of training."""
        return None if self.grid is None or self.shift is None else Grid(name=self.grid, shift=self.shift)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How much is held out and judged."""

    prompts: int
    draws: int
    clips: int
    tasks: int
    probe_clips: int | None

    def __post_init__(self):
        at_least_one(self, "draws", "clips")
        if self.tasks and not 2 <= self.tasks <= MOST_PROMPTS:
            raise UserError(f"evaluation.tasks {self.tasks} must be 0, or 2 to {MOST_PROMPTS}")
        if self.prompts:
            heldout_prompts(self.prompts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """The runs of a study of scale; see `configs/base.py`."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    compute: tuple[float, ...]
    seeds: tuple[int, ...]
    held_back: float | None

    def __post_init__(self):
        if not self.widths or len(self.widths) != len(self.depths):
            raise UserError(f"{len(self.widths)} widths and {len(self.depths)} depths: give one depth for each width")
        rising = list(self.compute) == sorted({*self.compute})
        if len(self.compute) < 3 or not rising or self.compute[0] <= 0:
            raise UserError(f"compute {self.compute} must be three budgets or more, rising, of more than 0")
        if len({*self.widths}) < len(self.widths) or len({*self.seeds}) < len(self.seeds) or not self.seeds:
            raise UserError(f"widths {self.widths} and seeds {self.seeds}: give each once, and one at least")
        if sum(budget < self.first_held_back for budget in self.compute) < 2 or self.first_held_back > self.compute[-1]:
            raise UserError(
                f"held_back {self.first_held_back:g} of the budgets {self.compute}: leave two or more below it to be "
                "fitted, and one or more to be predicted"
            )

    @property
    def first_held_back(self) -> float:
        """The smallest budget that is no part of the fit."""
        return self.compute[-1] if self.held_back is None else self.held_back


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a run is told, by the names of `configs/base.py`.

    With `autoencoder_weights`, there `autoencoder.weights`, `autoencoder` is the shape of these. With these, or with
    `autoencoder_start_from`, there `autoencoder.start_from`, `run` has no stages that train one. `optimizer` is that of
    stages that have none of their own. `scaling` is None in configs of before there were studies.
    """

    seed: int
    precision: Precision | None
    run: tuple[str, ...]
    model: str | None
    mesh: MeshConfig
    data: DataConfig
    more_data: dict[str, DataConfig]
    shapes: ShapesConfig
    autoencoder: AutoencoderConfig
    autoencoder_weights: str | None
    autoencoder_start_from: str | None
    autoencoder_loss: AutoencoderLossConfig
    perceptual_weights: str | None
    image_encoder: str | None
    discriminator: DiscriminatorConfig
    codec: CodecConfig
    transformer: TransformerConfig
    text: TextConfig
    packing: PackingConfig
    context: ContextConfig
    captioner: CaptionerConfig
    captioner_loss: CaptionerLossConfig
    captioning: CaptioningConfig
    recaption: RecaptionConfig
    diffusion: DiffusionConfig
    ema: EmaConfig
    optimizer: OptimizerConfig
    stages: dict[str, Stage]
    checkpoint: CheckpointConfig
    log: LogConfig
    guard: GuardConfig
    sampling: SamplingConfig
    evaluation: EvaluationConfig
    scaling: ScalingConfig | None

    @property
    def collections(self) -> dict[str, DataConfig]:
        """All collections by name, the first one called MAIN."""
        return {MAIN: self.data, **self.more_data}

    def stages_of(self, model: str) -> list[str]:
        """Returns the names of the stages of the run that train a model (`Stage.trains`), in order."""
        return [name for name in self.run if name in self.stages and self.stages[name].trains == model]

    @property
    def has_autoencoder(self) -> bool:
        """Whether the run trains an autoencoder, or is given one."""
        given = self.autoencoder_weights is not None or self.autoencoder_start_from is not None
        return given or bool(self.stages_of(AUTOENCODER))

    @functools.cached_property
    def public(self) -> ModelFiles | None:
        """The files of the public model; None where the run makes its own."""
        return None if self.model is None else find_model(self.model)

    @property
    def counted_fps(self) -> float | None:
        """Rate that every clip is taken to have, as public models count frames and know no seconds; None: its own."""
        return None if self.public is None else self.public.variant.fps

    @functools.cached_property
    def text_encoder(self) -> TextEncoder:
        """The text encoder: it may hold files, so there is one."""
        return build_encoder(self.text)

    @functools.cached_property
    def shown(self) -> ShownConfig | None:
        """How the transformer is shown frames beside its noise; None: it is not."""
        transformer = self.transformer
        if transformer.given_channels is None:
            return None
        if transformer.image_dim is None:
            return ShownConfig(channels=transformer.given_channels, last="may")
        tokens, width = _IMAGE_TOKENS, transformer.image_dim
        if self.image_encoder is not None:
            tower = describe_image_encoder(self.image_encoder)
            tokens, width = tower.tokens, tower.width
        last = "never" if transformer.image_positions is None else "must"
        return ShownConfig(channels=transformer.given_channels, last=last, image_tokens=tokens, image_width=width)

    @property
    def probed(self) -> bool:
        """Whether the run makes videos of further drawn worlds, of which is known what must come."""
        drawn = self.data.source == "shapes" and self.shapes.worlds is not None
        return drawn and bool(self.stages_of(TEXT_TO_VIDEO)) and self.shown is None

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
