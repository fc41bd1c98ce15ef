"""Prompts of requests as the captions of a run have their words."""

import dataclasses
from collections.abc import Sequence, Set

from absl import logging

from sora_jax.core.printable import printable
from sora_jax.data.tokens import clean_caption
from sora_jax.data.words import respell
from sora_jax.experiment.caption_words import CaptionWords
from sora_jax.experiment.prompt_advice import prompt_advice
from sora_jax.generate.job import Job, reworded
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import Request


def word_requests(caption_words: CaptionWords, requests: Sequence[Request]) -> list[Request]:
    """Returns the requests as `respell_requests`, after saying what of their prompts the model cannot have learnt."""
    found = respell_requests(caption_words, requests)
    prompts = [text for request in found for text in request.shown]
    negatives = [request.negative for request in found if request.negative]
    for said in prompt_advice(caption_words, prompts, negatives):
        logging.warning("%s", said)
    return found


def word_jobs(caption_words: CaptionWords, jobs: Sequence[Job], limits: ModelLimits) -> list[Job]:
    """Returns jobs whose requests are worded so; raises UserError as `read_job`."""
    worded = word_requests(caption_words, [job.request for job in jobs])
    return [reworded(job, request, limits) for job, request in zip(jobs, worded, strict=True)]


def respell_requests(caption_words: CaptionWords, requests: Sequence[Request]) -> list[Request]:
    """Returns the requests with prompts, negative ones too, spelled as the captions of the run are; says what changes.

    To the embedded text encoder a word with a capital, or with a comma behind it, is another word, which it has never
    seen where no caption has it. Others know such words, and what they are given stays.
    """
    found = []
    for request in requests:
        shown = tuple(_read_as(prompt, caption_words.spellings) for prompt in request.shown)
        pairs, changes = list(zip(request.shown, shown, strict=True)), {}
        if shown != request.shown:
            changes["expansion"] = shown
        if request.negative:
            changes["negative"] = _read_as(request.negative, caption_words.spellings)
            pairs.append((request.negative, changes["negative"]))
        for given, read in dict.fromkeys(pairs):
            if given != read:
                logging.info(f"{printable(given)!r} is read as {printable(read)!r}: captions of this run spell it so")
        found.append(dataclasses.replace(request, **changes))
    return found


def _read_as(prompt: str, spellings: Set[str]) -> str:
    """Returns a prompt as it is spelled; one that is cleaned alone stays as it is given."""
    spelled = respell(prompt, spellings)
    return prompt if spelled == clean_caption(prompt) else spelled
