"""The ranges of the numbers of a config that no class of settings sees to, by key.

They are looked at before anything is built from the config: a model of 0 heads cannot say what is wrong with it.
"""

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`; None: no end. `above` leaves out the low end, `below` the high one."""

    low: float
    high: float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        if value < self.low or (self.above and value == self.low):
            return False
        return self.high is None or value < self.high or (not self.below and value == self.high)

    def __str__(self) -> str:
        low = f"{'more than' if self.above else 'at least'} {self.low:g}"
        if self.high is None:
            return low
        return f"{low} and {'less than' if self.below else 'at most'} {self.high:g}"


AT_LEAST_ONE = Range(low=1)
NOT_NEGATIVE = Range(low=0)
POSITIVE = Range(low=0, above=True)
SHARE = Range(low=0, high=1)
DECAY = Range(low=0, high=1, below=True)

# Of every number under a key that matches; `*` stands for anything.
RANGES: dict[str, Range] = {
    "autoencoder.patch": AT_LEAST_ONE,
    "autoencoder.multipliers": AT_LEAST_ONE,
    "autoencoder.*width": AT_LEAST_ONE,
    "autoencoder.*blocks": NOT_NEGATIVE,
    "autoencoder.channels": AT_LEAST_ONE,
    "autoencoder_loss.*": NOT_NEGATIVE,
    "transformer.patch": AT_LEAST_ONE,
    "transformer.*width": AT_LEAST_ONE,
    "transformer.depth": AT_LEAST_ONE,
    "transformer.heads": AT_LEAST_ONE,
    "transformer.frequency_dim": Range(low=2),
    "*.rope_theta": POSITIVE,
    "transformer.time_rate": POSITIVE,
    "transformer.text_pad_to": AT_LEAST_ONE,
    "transformer.given_channels": AT_LEAST_ONE,
    "transformer.lora.rank": AT_LEAST_ONE,
    "transformer.lora.alpha": POSITIVE,
    "transformer.image_dim": AT_LEAST_ONE,
    "transformer.image_positions": AT_LEAST_ONE,
    "text.*": AT_LEAST_ONE,
    "captioner.generative_queries": NOT_NEGATIVE,
    "captioner.*": AT_LEAST_ONE,
    "recaption.mix.*": NOT_NEGATIVE,
    "recaption.max_unclean": NOT_NEGATIVE,
    "recaption.min_agreement": Range(low=-1, high=1),
    "recaption.min_direction": SHARE,
    "recaption.server.timeout": POSITIVE,
    "recaption.server.retries": NOT_NEGATIVE,
    "recaption.*": AT_LEAST_ONE,
    "context.low.space": AT_LEAST_ONE,
    "context.low.time": AT_LEAST_ONE,
    "diffusion.noise.shift_power": NOT_NEGATIVE,
    "*optimizer.b?": DECAY,
    "*optimizer.weight_decay": NOT_NEGATIVE,
    "*optimizer.clip_norm": POSITIVE,
    "stages.*.schedule.learning_rate": POSITIVE,
    "stages.*.schedule.warmup_steps": NOT_NEGATIVE,
    "stages.*.schedule.*_share": SHARE,
    "stages.*.crops.cache_mb": NOT_NEGATIVE,
    "log.samples_per_stage": NOT_NEGATIVE,
    "sampling.size": AT_LEAST_ONE,
    "sampling.shift_base_tokens": POSITIVE,
    "shapes.seed": NOT_NEGATIVE,
    "scaling.widths": AT_LEAST_ONE,
    "scaling.depths": AT_LEAST_ONE,
    "scaling.seeds": NOT_NEGATIVE,
    "evaluation.*": NOT_NEGATIVE,
    "*data.*curation.*": NOT_NEGATIVE,
    "*data.*heldout_share": DECAY,
    "log.validate_every": NOT_NEGATIVE,
}


def out_of_range(config: Any) -> list[str]:
    """Returns a sentence for each key of a config (a ConfigDict or a mapping) with a number that cannot work."""
    problems = []
    for key, value in _leaves(config):
        wanted = next((RANGES[pattern] for pattern in RANGES if fnmatch.fnmatchcase(key, pattern)), None)
        if wanted is not None and any(number not in wanted for number in _numbers(value)):
            problems.append(f"config.{key} {value!r} must be {wanted}")
    return problems


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for key in tree:
        if isinstance(tree[key], ConfigDict | Mapping):
            yield from _leaves(tree[key], f"{path}{key}.")
        else:
            yield f"{path}{key}", tree[key]


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
