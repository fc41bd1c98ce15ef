"""Clips that a server describes."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from sora_jax.core import chat_server
from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip, Clip
from sora_jax.preparation.drafts import DETAILED, SHORT, Drafts
from sora_jax.preparation.remote_captions import RemoteConfig, RemoteDescriber, frames_shown, read_drafts, tiled
from tests.fake_chat import fails, fake_chat, says

CONFIG = RemoteConfig(frames=3, side=40, tiled=False, in_flight=2, timeout=10.0, retries=1)
TOLD = {
    "subject": "a red dog",
    "background": "None",
    "style": "",
    "camera": ["still", "low"],
    "motion": 3,
    "short": "A red dog\nruns.",
    "detailed": "A red dog runs left over grass.",
    "mood": "gay",
}


class Greys:
    """Clips of 9 frames, each brighter than the one before, then an image."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        frames = 1 if index == 2 else 9
        pixels_THWC = np.zeros((frames, 96, 160, 3), np.uint8)
        pixels_THWC += (np.arange(frames) * 25).astype(np.uint8)[:, None, None, None]
        return Clip(pixels_THWC=pixels_THWC, fps=3.0, captions=("grey",), source_id=self.source_id(index))

    def source_id(self, index):
        return f"{index}.mp4"

    def origin(self, index):
        return str(index)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(chat_server, "_FIRST_WAIT", 0.001)


def described(describer, *indices):
    return describer.describe([describer.read(Greys(), index) for index in indices])


def pictures(question):
    parts = question["messages"][0]["content"]
    assert parts[-1]["type"] == "text"
    urls = [part["image_url"]["url"] for part in parts[:-1]]
    found = [base64.b64decode(url.removeprefix("data:image/jpeg;base64,")) for url in urls]
    return [Image.open(io.BytesIO(data)) for data in found], parts[-1]["text"]


def test_frames_that_we_choose_are_sent_and_captions_come_back():
    with fake_chat(says(f"```json\n{json.dumps(TOLD)}\n```")) as fake:
        (drafts,) = described(RemoteDescriber(fake.client(), CONFIG), 0)
    assert isinstance(drafts, Drafts)
    assert [(draft.style, draft.text) for draft in drafts.captions] == [
        (SHORT, "A red dog runs."),
        (DETAILED, "A red dog runs left over grass."),
    ]
    assert drafts.fields == {"subject": "a red dog", "camera": "still, low"}
    shown, text = pictures(fake.asked[0])
    assert [picture.format for picture in shown] == ["JPEG"] * 3
    assert [picture.size for picture in shown] == [(40, 24)] * 3
    greys = [np.asarray(picture).mean() for picture in shown]
    np.testing.assert_allclose(greys, [0, 100, 200], atol=2)
    assert "3 frames of one video of 3 seconds" in text
    assert all(f'"{key}": ' in text for key in TOLD if key != "mood")
    assert fake.asked[0]["temperature"] == 0


def test_where_a_server_takes_one_picture_frames_are_tiles_of_it():
    config = RemoteConfig(frames=5, side=40, tiled=True, in_flight=2, timeout=10.0, retries=1)
    with fake_chat(says(json.dumps(TOLD))) as fake:
        described(RemoteDescriber(fake.client(in_flight=1), config), 1, 2)
    (picture,), text = pictures(fake.asked[0])
    assert picture.size == (160, 48)
    assert "5 frames" in text
    assert "row by row" in text
    (picture,), text = pictures(fake.asked[1])
    assert picture.size == (40, 24)
    assert "This is an image" in text


def test_tiles_are_in_rows():
    found = tiled(np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8))
    assert found.shape == (4, 12, 3)
    np.testing.assert_array_equal(found[::2, ::3, 0], [[1, 2, 3, 4], [5, 0, 0, 0]])


@pytest.mark.parametrize(
    ("frames", "most", "shown"),
    [(9, 3, [0, 4, 8]), (9, 1, [0]), (2, 8, [0, 1]), (1, 8, [0]), (100, 4, [0, 33, 66, 99]), (8, 8, [*range(8)])],
)
def test_frames_are_evenly_spaced(frames, most, shown):
    assert frames_shown(frames, most) == shown


def test_all_frames_are_kept_small_for_those_who_look_at_the_motion():
    with fake_chat(says("")) as fake:
        clip = RemoteDescriber(fake.client(), CONFIG).read(Greys(), 0)
    assert clip.pixels_THWC.shape == (9, 64, 107, 3)
    assert (clip.fps, clip.captions, clip.source_id) == (3.0, ("grey",), "0.mp4")


def test_an_answer_of_another_form_is_asked_for_once_more():
    with fake_chat(says("A red dog runs."), says(json.dumps(TOLD))) as fake:
        (drafts,) = described(RemoteDescriber(fake.client(), CONFIG), 0)
    assert isinstance(drafts, Drafts)
    first, second = (question["messages"] for question in fake.asked)
    assert second[:1] == first
    assert second[1:] == [
        {"role": "assistant", "content": "A red dog runs."},
        {"role": "user", "content": "Answer with the JSON object alone."},
    ]


def test_clips_without_captions_are_named_with_the_reason():
    def reply(body):
        if len(body["messages"][0]["content"]) == 2:
            return fails(400, "one picture is too few")
        return says("I'm sorry, but I can't help with that.")

    with fake_chat(reply) as fake:
        found = described(RemoteDescriber(fake.client(), CONFIG), 0, 2)
    assert all(isinstance(one, BadClip) for one in found)
    assert "0.mp4: the server gave no captions: there is no JSON object in it: \"I'm sorry" in str(found[0])
    assert "2.mp4: the server gave no captions: " in str(found[1])
    assert "says 400: one picture is too few" in str(found[1])


def test_a_wrong_key_ends_it():
    with fake_chat(fails(401, "who?")) as fake, pytest.raises(UserError, match="who"):
        described(RemoteDescriber(fake.client(), CONFIG), 0, 1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("[]", "no JSON object"),
        ('{"short": "a"}', "lacks the detailed caption"),
        ('{"short": "n/a", "detailed": null}', "lacks the short and the detailed caption"),
        ('{"short": "a", "detailed": ', "no JSON object"),
        ('{"short": "a", "detailed": }', "Expecting value"),
    ],
)
def test_an_answer_without_captions_is_none(answer, message):
    with pytest.raises(ValueError, match=message):
        read_drafts(answer)


def test_keys_may_be_in_capitals_and_words_around_them():
    drafts = read_drafts('Sure! {"Short": "A dog.", "Detailed ": "A dog runs.", "MOTION": "It runs."} Done.')
    assert [draft.text for draft in drafts.captions] == ["A dog.", "A dog runs."]
    assert drafts.fields == {"motion": "It runs."}


def test_who_wrote_is_the_model_and_what_it_was_shown_and_asked():
    with fake_chat(says("")) as fake:
        by = RemoteDescriber(fake.client(), CONFIG).by
        other = RemoteConfig(frames=4, side=40, tiled=False, in_flight=2, timeout=10.0, retries=1)
        patient = RemoteConfig(frames=3, side=40, tiled=False, in_flight=9, timeout=99.0, retries=9)
        assert by["model"] == "seer"
        assert RemoteDescriber(fake.client(), other).by["prompt"] != by["prompt"]
        assert RemoteDescriber(fake.client(), patient).by == by
