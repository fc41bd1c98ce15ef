"""The part of the config about clips that are given beside the one that is made."""

import dataclasses
from collections.abc import Sequence

from sora_jax.core.errors import UserError
from sora_jax.preparation.context import Controls
from sora_jax.preparation.controls import CONTROLS, low_control
from sora_jax.preparation.degrade import LowConfig
from sora_jax.video.parts import ROLES


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowSettings(LowConfig):
    """Smaller, slower forms of clips, and the highest noise level on them; see `configs/base.py`."""

    max_level: float

    def __post_init__(self):
        super().__post_init__()
        if any(max(self.space) % factor for factor in self.space):
            raise UserError(f"low.space {self.space} must all divide the largest of them")
        if not 0 <= self.max_level < 1:
            raise UserError(f"low.max_level {self.max_level:g} is outside [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Clips that are given beside the one that is made; see `configs/base.py`."""

    kinds: tuple[str, ...]
    dropout: float
    max_level: float
    low: LowSettings
    blind: bool

    def __post_init__(self):
        unknown = [kind for kind in self.kinds if kind not in CONTROLS]
        if unknown or len({*self.kinds}) < len(self.kinds):
            raise UserError(f"kinds {self.kinds} must be some of {', '.join(CONTROLS)}, each once")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout {self.dropout:g} is outside [0, 1)")
        if not 0 <= self.max_level < 1:
            raise UserError(f"max_level {self.max_level:g} is outside [0, 1)")

    def controls(self) -> Controls:
        """Returns what is made beside each clip."""
        table = {**CONTROLS, "low": low_control(self.low)}
        return {kind: table[kind] for kind in self.kinds}

    def most_beside(self, sets: Sequence[Sequence[str]], tokens: int) -> tuple[int, ...]:
        """Returns the tokens of each clip beside one of so many tokens, in the set of kinds that has most in all."""
        scales = {kind: control.scale for kind, control in CONTROLS.items()} | {"low": min(self.low.space)}
        found = [tuple(-(-tokens // scales[kind] ** 2) for kind in kinds) for kinds in sets]
        return max(found, key=sum, default=())

    def max_levels(self) -> tuple[float, ...]:
        """Returns the highest noise level of clips beside, for each role."""
        return tuple(self.low.max_level if role == "low" else self.max_level for role in ROLES)
