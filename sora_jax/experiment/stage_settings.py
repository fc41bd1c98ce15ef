"""The kinds of stage and what each is told, as frozen dataclasses; see `configs/base.py`."""

import dataclasses
import re
from typing import Literal

from sora_jax.core.config import at_least_one
from sora_jax.core.errors import UserError
from sora_jax.data.crops import CropConfig
from sora_jax.diffusion.known import KnownConfig
from sora_jax.train.optimizer import OptimizerConfig, ScheduleConfig

FrozenDtype = Literal["float32", "bfloat16"]


def read_rules(rules: tuple[str, ...], *, given: bool) -> list[tuple[re.Pattern[str], str]]:
    """Returns the (names here, name there) of "REGEX -> NAME" rules; `given` says whether there is a run to name.

    Raises UserError for what is no such rule, and for rules without a run.
    """
    if rules and not given:
        raise UserError(f"start_rules {list(rules)} say how to start from another run: give it as start_from")
    found = []
    for rule in rules:
        pattern, arrow, name = (part.strip() for part in rule.partition("->"))
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UserError(f"start_rules: {pattern!r} is no regular expression: {error}") from error
        if not (pattern and arrow and name):
            raise UserError(f"start_rules: {rule!r} must be 'REGEX -> NAME' or 'REGEX -> fresh'")
        found.append((compiled, name))
    return found


def check_trainable(trainable: str | None, frozen_dtype: FrozenDtype | None) -> None:
    """Raises UserError where `trainable` is no regular expression, or nothing is frozen that could have a dtype."""
    if trainable is None and frozen_dtype is not None:
        raise UserError(f"frozen_dtype {frozen_dtype!r} is of what a stage freezes: say in trainable what it trains")
    try:
        re.compile(trainable or "")
    except re.error as error:
        raise UserError(f"trainable {trainable!r} is no regular expression: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderStage:
    """Trains the autoencoder on windows of clips, from where the autoencoder stage before it ended."""

    kind: str
    steps: int
    accumulate: int
    schedule: ScheduleConfig
    start_from: str | None
    start_rules: tuple[str, ...]
    trainable: str | None
    frozen_dtype: FrozenDtype | None
    crops: CropConfig
    adversarial: float
    optimizer: OptimizerConfig

    def __post_init__(self):
        at_least_one(self, "steps", "accumulate")
        read_rules(self.start_rules, given=self.start_from is not None)
        check_trainable(self.trainable, self.frozen_dtype)
        if self.adversarial < 0:
            raise UserError(f"adversarial {self.adversarial:g} must be 0 for no discriminator, or more; 0.05 is usual")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareStage:
    """Encodes all clips once, to shards."""

    kind: str
    batch: int
    clips_per_shard: int

    def __post_init__(self):
        at_least_one(self, "batch", "clips_per_shard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Shares of images and of videos among what a diffusion stage draws, and of collections among each of both."""

    images: float
    videos: float
    collections: dict[str, float]

    def __post_init__(self):
        if min(self.images, self.videos) < 0 or self.images + self.videos == 0:
            raise UserError(f"shares images {self.images:g} and videos {self.videos:g} must be 0 or more, not both 0")
        if self.collections and min(self.collections.values()) <= 0:
            raise UserError(f"collections {self.collections} must have weights above 0: leave out what is not drawn")

    @property
    def kinds(self) -> dict[str, float]:
        """The kinds of clips that are drawn, with their shares."""
        return {kind: share for kind, share in (("images", self.images), ("videos", self.videos)) if share > 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionStage:
    """Trains the transformer on prepared clips."""

    kind: str
    steps: int
    accumulate: int
    schedule: ScheduleConfig
    start_from: str | None
    start_rules: tuple[str, ...]
    trainable: str | None
    frozen_dtype: FrozenDtype | None
    mix: MixConfig
    known: KnownConfig
    token_drop: tuple[float, float]

    def __post_init__(self):
        at_least_one(self, "steps", "accumulate")
        read_rules(self.start_rules, given=self.start_from is not None)
        check_trainable(self.trainable, self.frozen_dtype)
        least, largest = self.token_drop
        if not 0 <= least <= largest < 1:
            raise UserError(
                f"token_drop ({least:g}, {largest:g}) must be two shares from 0 to less than 1, the smaller first; "
                "(0, 0) drops nothing"
            )


StageConfig = AutoencoderStage | PrepareStage | DiffusionStage
STAGE_KINDS = {"autoencoder": AutoencoderStage, "prepare": PrepareStage, "diffusion": DiffusionStage}
