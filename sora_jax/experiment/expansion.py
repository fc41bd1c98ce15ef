"""Prompts of requests before they are shown: written out at length by a captioner or a server."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from sora_jax.core.chat_server import ChatServer
from sora_jax.core.printable import printable
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment.expanders import PromptExpander, trained_expander
from sora_jax.experiment.sample_log import evenly
from sora_jax.experiment.session import Session
from sora_jax.generate.remote_expansion import expand_by_server
from sora_jax.generate.request import Request
from sora_jax.train.workdir import Workdir

_EXAMPLES = 12
# So that another try is another text.
_TEMPERATURE = 0.7


def reword_requests(session: Session, requests: Sequence[Request], expand: str | None) -> list[Request]:
    """Returns the requests with what is shown for their prompts: written out by `expand`, where that is given, then
    worded as captions of the run are.

    Raises UserError as `expand_requests`.
    """
    return session.worded(requests if expand is None else expand_requests(session, requests, expand))


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
        elif one.text != one.prompt:
            logging.info(f"{printable(one.prompt)!r} becomes {printable(one.text)!r}")
    texts = iter(found)
    return [
        dataclasses.replace(request, expansion=tuple(next(texts).text for _ in request.prompt)) for request in requests
    ]


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
    return list(dict.fromkeys(max(prepared[at].captions, key=len) for at in evenly(len(prepared), _EXAMPLES)))
