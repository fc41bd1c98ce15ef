"""Prompts of requests are written out by whom the user names, and stay, with a reason, where that fails."""

import logging

import jax
import pytest

import sora_jax
from sora_jax.core.errors import UserError
from sora_jax.data.shards.catalogue import read_words
from sora_jax.experiment.expanders import OWN_CAPTIONER, PromptExpander
from sora_jax.experiment.expansion import expand_requests
from sora_jax.generate.request import Request
from tests.fake_chat import fake_chat, says

LONG = "a red circle moves right on a dark background"


@pytest.fixture(scope="module")
def run(toy_workdir):
    return sora_jax.open_run(toy_workdir, devices=jax.devices()[:1])


def test_a_server_writes_like_the_captions_and_is_checked(run, caplog):
    def answer(body):
        *_, asked = body["messages"]
        written = {"red circle": LONG, "circle": f"{LONG} {'far ' * 200}", LONG: LONG}
        return says(written.get(asked["content"], "a blue cat"))

    prompts = ("red circle", "circle", "red cat", LONG)
    requests = [Request(prompt=(prompt,), seed=number) for number, prompt in enumerate(prompts)]
    with fake_chat(answer) as fake, caplog.at_level(logging.INFO, logger="absl"):
        found = expand_requests(run, requests, f"{fake.url}#seer")
    assert found == requests, "the expansion is no part of what is asked for"
    assert [one.shown for one in found] == [(LONG,), ("circle",), ("red cat",), (LONG,)]
    assert len(fake.asked) == 4 + 2 + 2 + 2
    assert fake.asked[0]["model"] == "seer"
    assert fake.asked[0]["temperature"] > 0
    system = fake.asked[0]["messages"][0]["content"]
    assert system.count("\n- a ") > 3, "captions that it was trained on"
    assert f"'red circle' becomes '{LONG}'" in caplog.text
    assert f"'{LONG}' becomes" not in caplog.text
    assert "'red cat' stays as it is: 'red' is lost; the colour of 'cat' is blue, not red" in caplog.text
    assert "'circle' stays as it is: what was written has" in caplog.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "a red circle moves right and a blue square moves left",
            "'a blue square moves left' is added; 'and' is a word of no caption",
        ),
        ("a red circle moves right on a drak background", "'drak' is a word of no caption"),
        ("a red circle moves left", "'right' is lost; the direction of 'circle' is left, not right"),
    ],
)
def test_what_a_captioner_adds_or_garbles_is_refused(run, text, reason):
    def always(prompts, seeds, attempt):
        return [text if attempt < 3 else LONG.replace("dark", "drak")] * len(prompts)

    words = read_words(run.models.workdir.prepared())
    expander = PromptExpander(expander=always, limits=run.limits, learnt=True, words=words)
    assert "; ".join(expander.find_faults("red circle right", text)) == reason
    (found,) = expander(["red circle right"], [0])
    assert (found.text, found.faults) == ("red circle right", ("'drak' is a word of no caption",))
    assert expander.find_faults("red circle right", LONG) == ()
    assert expander.find_faults("drak red circle right", f"drak {LONG}") == (), "it is the user's"
    by_server = PromptExpander(expander=always, limits=run.limits, learnt=False)
    assert by_server.find_faults("red circle right", f"{LONG}, a gentle breeze blowing") == ()


def test_requests_without_a_prompt_need_nobody(run):
    request = Request(task="upscale", video=("a.mp4",))
    assert expand_requests(run, [request], OWN_CAPTIONER) == [request]


def test_a_run_without_a_captioner_cannot_expand(run, tmp_path):
    asked = [Request(prompt=("red",))]
    with pytest.raises(UserError, match="has no checkpoint of a captioner"):
        expand_requests(run, asked, OWN_CAPTIONER)
    with pytest.raises(UserError, match="holds no run"):
        expand_requests(run, asked, str(tmp_path))
    with pytest.raises(UserError, match="has no checkpoint of a captioner"):
        run.evaluate("expand")
    with pytest.raises(UserError, match="holds no run"):
        run.evaluate("expand", captioner=str(tmp_path))
