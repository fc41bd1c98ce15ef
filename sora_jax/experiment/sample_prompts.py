"""The prompts that are sampled as training proceeds: those of the config, or captions of the run's own clips."""

import numpy as np

from sora_jax.experiment.caption_words import CaptionWords
from sora_jax.experiment.schema import Settings
from sora_jax.generate.limits import ModelLimits

# How many captions are taken, of clips spread over the run's.
_CAPTIONS = 4


def count_prompts(settings: Settings) -> int:
    """Returns how many there are at most."""
    prompts = settings.sampling.prompts
    return _CAPTIONS if prompts is None else len(prompts)


def choose_prompts(settings: Settings, words: CaptionWords, limits: ModelLimits) -> tuple[str, ...]:
    """Returns the prompts; of the captions of a run those that training does not cut, the same ones each time."""
    if settings.sampling.prompts is not None:
        return settings.sampling.prompts
    whole = [text for text in words.captions if limits.tokenizer.count(text) <= limits.text_tokens]
    return tuple(whole[at] for at in np.unique(np.linspace(0, max(0, len(whole) - 1), _CAPTIONS).astype(int)) if whole)
