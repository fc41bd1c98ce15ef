"""Prompts are spelled as the captions of a run are, also from Python, and what it never learnt is told."""

import logging

import jax
import pytest

import sora_jax
from sora_jax.experiment.caption_words import CaptionWords
from sora_jax.experiment.wording import respell_requests
from sora_jax.generate.request import Request


@pytest.fixture(scope="module")
def run(toy_workdir):
    return sora_jax.open_run(toy_workdir, devices=jax.devices()[:1])


def respelled(run, requests):
    return respell_requests(CaptionWords(run.models.workdir, run.settings), requests)


def test_prompts_are_spelled_as_the_captions_of_the_run(run, caplog):
    requests = [
        Request(prompt=("A RED circle, moving right.",)),
        Request(prompt=("a  red circle",)),
        Request(
            task="connect",
            video=("a.mp4", "b.mp4"),
            prompt=("red circle", "Blue square!"),
            expansion=("A red circle", "a blue square"),
        ),
        Request(task="upscale", video=("a.mp4",)),
    ]
    with caplog.at_level(logging.INFO, logger="absl"):
        found = respelled(run, requests)
    assert found == requests, "how it is spelled is no part of what is asked for"
    assert [one.shown for one in found[:2]] == [("a red circle moving right",), ("a  red circle",)]
    assert found[2].shown == ("a red circle", "a blue square")
    assert found[3] == requests[3]
    assert "'A RED circle, moving right.' is read as 'a red circle moving right': captions of this run" in caplog.text
    assert caplog.text.count("is read as") == 2


def test_where_spellings_were_not_noted_prompts_stay(run, monkeypatch):
    request = Request(prompt=("A RED circle.",))
    monkeypatch.setattr("sora_jax.experiment.caption_words.read_spellings", lambda _: None)
    assert respelled(run, [request])[0].shown == request.shown


def test_negative_prompts_are_spelled_so_too(run, caplog):
    requests = [
        Request(prompt=("red",), negative=negative) for negative in ("A BLUE square.", "blue  square", "", None)
    ]
    with caplog.at_level(logging.INFO, logger="absl"):
        found = respelled(run, requests)
    assert [one.negative for one in found] == ["a blue square", "blue  square", "", None]
    assert caplog.messages == ["'A BLUE square.' is read as 'a blue square': captions of this run spell it so"]


def test_what_the_run_never_learnt_of_prompts_and_negative_ones_is_told(run, caplog):
    (found,) = run.worded([Request(prompt=("A RED zeppelin",), negative="Fog!")])
    assert (found.shown, found.negative) == (("a red zeppelin",), "Fog!")
    (said,) = [message for message in caplog.messages if "no caption" in message]
    assert said.startswith("no caption of this run has 'zeppelin', 'fog': the model never learnt")


def test_clips_from_python_are_of_prompts_as_they_are_read(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "sora_jax.experiment.session.make_all", lambda sampler, params, jobs, limits: asked.extend(jobs) or []
    )
    monkeypatch.setattr(type(run.models), "sampler", lambda *_, **__: None)
    monkeypatch.setattr(type(run.models), "params", None)
    assert run.sample("A RED circle, moving right.", negative="A BLUE square.") == []
    (job,) = asked
    assert (job.prompts, job.negative) == (("a red circle moving right",), "a blue square")
