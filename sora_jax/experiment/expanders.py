"""Who writes prompts out at length for the models of a run, and what is asked of it: here, a captioner of a run."""

import dataclasses
from collections.abc import Collection, Sequence

from sora_jax.core.errors import UserError
from sora_jax.core.paths import expanded
from sora_jax.data.prompt_guard import find_additions, find_losses
from sora_jax.data.shards.catalogue import read_words
from sora_jax.data.tokens import clean_caption
from sora_jax.data.words import unseen, words_of
from sora_jax.experiment.captioners import load_captioner, make_expander
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.stage_settings import CAPTIONER
from sora_jax.generate.expand import Expander, Expansion, expand_prompts
from sora_jax.generate.limits import ModelLimits
from sora_jax.train.workdir import Workdir

OWN_CAPTIONER = "own"  # instead of an address or a folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptExpander:
    """Who writes prompts out, and what is asked of what comes back.

    Attributes:
      expander: Writes longer texts.
      limits: Of the model that is shown them.
      learnt: Whether it learnt from captions alone and writes only as these do: then it may name no other thing at all.
      words: Those of the captions that it learnt from; None: not known.
    """

    expander: Expander
    limits: ModelLimits
    learnt: bool
    words: Collection[str] | None = None

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Expansion]:
        """Returns what becomes of each prompt, none of which is empty, drawn by its seed; as `expand_prompts`."""
        return expand_prompts(self.expander, prompts, seeds, self.find_faults)

    def find_faults(self, prompt: str, text: str) -> tuple[str, ...]:
        """Returns in words why a longer text cannot take the place of a prompt; empty where it can.

        The model does not take it, it loses or contradicts what the prompt says, shows other things beside, or has
        words that are in no caption and not in the prompt.
        """
        longer, most = clean_caption(text), self.limits.text_tokens
        if not longer:
            return ("nothing whole was written",)
        if (tokens := self.limits.tokenizer.count(longer)) > most:
            return (f"what was written has {tokens} tokens, and this model takes {most}",)
        strange = [] if self.words is None else unseen([text], {*self.words, *words_of(prompt)})
        return (
            *find_losses(prompt, text),
            *find_additions(prompt, text, joined=not self.learnt),
            *(f"{word!r} is a word of no caption" for word in strange),
        )


def trained_expander(models: RunModels, limits: ModelLimits, by: str) -> PromptExpander:
    """Returns what expands by a captioner: `by` and errors as of `expand_requests`, but for servers.

    Args:
      models: What makes the videos, and its `limits`.
      limits: Of these models.
      by: `OWN_CAPTIONER` or a folder.
    """
    folder = models.settings.sampling.captioner if by == OWN_CAPTIONER else expanded(by)
    if folder is None and models.settings.model is not None:
        raise UserError(
            "a public model has no captioner: give --expand=RUNDIR of a run that trained one, or --expand=URL"
        )
    workdir = models.workdir if folder is None else Workdir(folder)
    settings = read_settings(workdir.config())
    if not settings.captioner_loss.expand_share and settings.stages_of(CAPTIONER):
        raise UserError(
            f"the captioner of {workdir.path} has not learnt to expand prompts: train one with "
            "--config.captioner_loss.expand_share=0.15"
        )
    params, _, _ = load_captioner(workdir, settings)
    expander = make_expander(settings, params)
    words = read_words(*(workdir.prepared(name) for name in settings.collections))
    return PromptExpander(expander=expander, limits=limits, learnt=True, words=words)
