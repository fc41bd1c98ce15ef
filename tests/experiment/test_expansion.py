"""Prompts of requests are written out by whom the user names, and stay, with a reason, where that fails."""

import logging

import jax
import pytest

import sora_jax
from sora_jax.core.errors import UserError
from sora_jax.experiment.expansion import OWN_CAPTIONER, expand_requests
from sora_jax.generate.request import Request
from tests.fake_chat import fake_chat, says

LONG = "a red circle moves right on a dark background"


@pytest.fixture(scope="module")
def run(toy_workdir):
    return sora_jax.open_run(toy_workdir, devices=jax.devices()[:1])


def test_a_server_writes_like_the_captions_and_is_checked(run, caplog):
    def answer(body):
        *_, asked = body["messages"]
        return says({"red circle": LONG, "circle": f"{LONG} {'far ' * 200}"}.get(asked["content"], "a blue cat"))

    requests = [Request(prompt=("red circle",)), Request(prompt=("circle",)), Request(prompt=("red cat",), seed=3)]
    with fake_chat(answer) as fake, caplog.at_level(logging.INFO, logger="absl"):
        found = expand_requests(run, requests, f"{fake.url}#seer")
    assert found == requests, "the expansion is no part of what is asked for"
    assert [one.shown for one in found] == [(LONG,), ("circle",), ("red cat",)]
    assert len(fake.asked) == 3 + 2 + 2 + 2
    assert fake.asked[0]["model"] == "seer"
    assert fake.asked[0]["temperature"] > 0
    system = fake.asked[0]["messages"][0]["content"]
    assert system.count("\n- a ") > 3, "captions that it was trained on"
    assert f"'red circle' becomes '{LONG}'" in caplog.text
    assert "'red cat' stays as it is: 'red' is lost; the colour of 'cat' is blue, not red" in caplog.text
    assert "'circle' stays as it is: the prompt has" in caplog.text


def test_requests_without_a_prompt_need_nobody(run):
    request = Request(task="upscale", video=("a.mp4",))
    assert expand_requests(run, [request], OWN_CAPTIONER) == [request]


def test_a_run_without_a_captioner_cannot_expand(run, tmp_path):
    asked = [Request(prompt=("red",))]
    with pytest.raises(UserError, match="has no checkpoint of a captioner"):
        expand_requests(run, asked, OWN_CAPTIONER)
    with pytest.raises(UserError, match="holds no run"):
        expand_requests(run, asked, str(tmp_path))
