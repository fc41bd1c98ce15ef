"""What the dataclasses of all kinds of stage have in common; see `configs/base.py`. Those of each are in `kinds/`."""

import dataclasses
import re
from typing import ClassVar, Literal, Self

from sora_jax.core.config import at_least_one
from sora_jax.core.errors import UserError
from sora_jax.train.optimizer import OptimizerConfig, ScheduleConfig

FrozenDtype = Literal["float32", "bfloat16"]
# Models that stages train, and that others load.
AUTOENCODER, TEXT_TO_VIDEO, CAPTIONER = "autoencoder", "text_to_video", "captioner"


class Stage:
    """What any code may ask of a stage of any kind; the subclass of a kind is a dataclass, its fields are its keys.

    Attributes:
      kind: Name in the table of kinds.
      trains: Name of the model that it trains; stages of one model go on from one another. None: it trains none.
      reads_clips: Whether it reads clips from their source, and not what was prepared of them.
      reads_captions: Whether these clips need captions.
    """

    kind: str
    trains: ClassVar[str | None] = None
    reads_clips: ClassVar[bool] = False
    reads_captions: ClassVar[bool] = False

    @property
    def most_frames(self) -> int:
        """Frames of the longest windows of clips that it trains on; 0: on none."""
        return 0

    @property
    def cache_mb(self) -> int:
        """Megabytes of decoded clips that it keeps in memory at most."""
        return 0

    def with_cache(self, megabytes: int) -> Self:
        """Returns the stage keeping at most so many."""
        del megabytes
        return self

    @property
    def levels(self) -> tuple[float, float]:
        """Lowest and highest noise level that the model is trained on."""
        return 0.0, 1.0

    @property
    def begins_anew(self) -> bool:
        """Whether it does not go on from the stage before it that trains the same model."""
        return False

    @property
    def keeps_frozen_in(self) -> FrozenDtype | None:
        """In which parameters are kept that it does not train; None: as they were."""
        return None

    @property
    def gives_known_tokens(self) -> bool:
        """Whether the model learns to go on from parts of a clip that are given."""
        return False

    @property
    def context_kinds(self) -> tuple[str, ...]:
        """Kinds of clips that are given beside some clips."""
        return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainStage(Stage):
    """A stage that trains, whatever it trains.

    Attributes:
      kind: As in `Stage`.
      steps: Batches trained on.
      accumulate: Micro-batches per step.
      schedule: Learning rate over the stage.
      start_from: Folder of another run's checkpoints, or one of them, whose averages it begins with; None: none.
      start_rules: Names of parameters there, as `read_rules` reads them.
      trainable: Regular expression of the names of the parameters that are trained; None: all are.
      frozen_dtype: In which the others are kept; None: as they were.
      optimizer: How gradients become updates.
    """

    kind: str
    steps: int
    accumulate: int
    schedule: ScheduleConfig
    start_from: str | None
    start_rules: tuple[str, ...]
    trainable: str | None
    frozen_dtype: FrozenDtype | None
    optimizer: OptimizerConfig

    def __post_init__(self):
        at_least_one(self, "steps", "accumulate")
        read_rules(self.start_rules, given=self.start_from is not None)
        check_trainable(self.trainable, self.frozen_dtype)

    @property
    def trained(self) -> str | None:
        """Regular expression of the names of the parameters that are trained; None: all are."""
        return self.trainable

    @property
    def begins_anew(self) -> bool:
        """Whether another run gives its weights."""
        return self.start_from is not None

    @property
    def keeps_frozen_in(self) -> FrozenDtype | None:
        """As `frozen_dtype`."""
        return self.frozen_dtype


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
class MixConfig:
    """Shares of images and of videos among what is drawn of prepared clips, and of collections among each of both."""

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
