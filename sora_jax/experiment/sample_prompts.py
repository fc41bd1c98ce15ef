"""What is sampled as training proceeds: the prompts of the config, or captions of its clips at their sizes."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sora_jax.core.errors import DataError
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment.sample_log import evenly
from sora_jax.experiment.schema import Settings
from sora_jax.generate.limits import ModelLimits

# How many captions are taken, and of how many clips, spread over all, they are chosen.
_CAPTIONS, _LOOKED_AT = 4, 64


class Example(NamedTuple):
    """A prompt, and the height and width of its video, px."""

    prompt: str
    size: tuple[int, int]


def count_examples(settings: Settings) -> int:
    """Returns how many there are at most."""
    prompts = settings.sampling.prompts
    return _CAPTIONS if prompts is None else len(prompts)


def configured_examples(settings: Settings) -> list[Example]:
    """Returns the prompts of the config; where it has none, one that stands for captions, which are not known yet."""
    prompts = ("any",) if settings.sampling.prompts is None else settings.sampling.prompts
    return [Example(prompt, settings.sampling.size) for prompt in prompts]


def choose_examples(
    settings: Settings, open_clips: Callable[[], PreparedSet], limits: ModelLimits, *, frames: int
) -> list[Example]:
    """Returns the prompts of videos of so many frames; prepared clips are opened where their captions are asked for.

    Of these it is captions that training does not cut, of images only where `frames` is 1 or there are no videos; the
    same ones each time.
    """
    if settings.sampling.prompts is not None:
        return configured_examples(settings)
    prepared = open_clips()
    moving_N = np.flatnonzero(prepared.grid_N3[:, 0] > 1)
    numbers_N = moving_N if frames > 1 and len(moving_N) else np.arange(len(prepared))
    found: dict[str, Example] = {}
    for number in numbers_N[evenly(len(numbers_N), _LOOKED_AT)].tolist():
        with contextlib.suppress(DataError):  # training and `verify` tell of it
            text = next(iter(prepared.raw(number).captions), "")
            if text and limits.tokenizer.count(text) <= limits.text_tokens:
                _, rows, columns = map(int, prepared.grid_N3[number])
                found.setdefault(text, Example(text, (rows * settings.stride[1], columns * settings.stride[2])))
    whole = [*found.values()]
    return [whole[at] for at in evenly(len(whole), _CAPTIONS)]
