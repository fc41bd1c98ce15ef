"""Prompts of requests written out at length, by a captioner that a run trained or by a server."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from sora_jax.core.chat_server import ChatServer
from sora_jax.core.errors import UserError
from sora_jax.core.paths import expanded
from sora_jax.core.printable import printable
from sora_jax.data.prompt_guard import find_additions, find_losses
from sora_jax.data.shards.files import read_words
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.tokens import check_prompt
from sora_jax.data.words import unseen, words_of
from sora_jax.experiment.captioners import load_captioner, make_expander
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.session import Session
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.stage_settings import CAPTIONER
from sora_jax.generate.expand import Expander, Expansion, expand_prompts
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.remote_expansion import expand_by_server
from sora_jax.generate.request import Request
from sora_jax.train.workdir import Workdir

OWN_CAPTIONER = "own"  # instead of an address or a folder
_EXAMPLES = 12
# So that another try is another text.
_TEMPERATURE = 0.7


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
        try:
            check_prompt(text, self.limits.tokenizer, max_tokens=self.limits.text_tokens)
        except UserError as error:
            return (str(error),)
        strange = [] if self.words is None else unseen([text], {*self.words, *words_of(prompt)})
        return (
            *find_losses(prompt, text),
            *find_additions(prompt, text, joined=not self.learnt),
            *(f"{word!r} is a word of no caption" for word in strange),
        )


def expand_requests(session: Session, requests: Sequence[Request], by: str) -> list[Request]:
    """Returns the requests with what their prompts become, each drawn by its request's seed; says what becomes of each.

    Args:
      session: What makes the videos.
      requests: Whose prompts are not empty, where they have any.
      by: `OWN_CAPTIONER`: the captioner of `sampling.captioner`, or of the run itself; a folder: that of the run there;
        http... or https..., with #MODEL where it has several: a chat server.

    Raises UserError where there is no such captioner, or it has not learnt to expand, and for a server that cannot be
    asked.
    """
    asked = [(prompt, request.seed) for request in requests for prompt in request.prompt]
    if not asked:
        return list(requests)
    expander = _server_expander(session, by) if "://" in by else trained_expander(session.models, session.limits, by)
    prompts, seeds = zip(*asked, strict=True)
    found = expander(prompts, seeds)
    for one in found:
        if one.faults:
            logging.warning(f"{printable(one.prompt)!r} stays as it is: {printable('; '.join(one.faults))}")
        else:
            logging.info(f"{printable(one.prompt)!r} becomes {printable(one.text)!r}")
    texts = iter(found)
    return [
        dataclasses.replace(request, expansion=tuple(next(texts).text for _ in request.prompt)) for request in requests
    ]


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
    return PromptExpander(expander=expander, limits=limits, learnt=True, words=_words(workdir, settings))


def _words(workdir: Workdir, settings: Settings) -> set[str] | None:
    """Returns the words of all captions that a run was trained on; None where they are no longer there."""
    found = [read_words(workdir.prepared(name)) for name in settings.collections]
    known = [words for words in found if words is not None]
    return set().union(*known) if len(known) == len(found) else None


def _server_expander(session: Session, by: str) -> PromptExpander:
    address, _, model = by.partition("#")
    server = ChatServer(address, model or None, temperature=_TEMPERATURE)
    settings = session.settings
    examples = [] if settings.model is not None else _examples(session.models.workdir, list(settings.collections))

    def expand(prompts: Sequence[str], seeds: Sequence[int], attempt: int) -> list[str]:
        del seeds, attempt  # a server draws as it likes
        return expand_by_server(server, prompts, examples)

    return PromptExpander(expander=expand, limits=session.limits, learnt=False)


def _examples(workdir: Workdir, collections: Sequence[str]) -> list[str]:
    """Returns the longest captions of some clips that were trained on; none where they are no longer there."""
    folders = [workdir.prepared(name) for name in collections]
    if not all(Path(folder).exists() for folder in folders):
        return []
    prepared = PreparedSet(*folders)
    places = np.unique(np.linspace(0, len(prepared) - 1, _EXAMPLES).astype(int)).tolist()
    return list(dict.fromkeys(max(prepared[place].captions, key=len) for place in places))
