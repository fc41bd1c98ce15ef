"""Which new captions are taken, and what is mended in them."""

import dataclasses

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.preparation.caption_filters import DraftFilters, RecaptionConfig
from sora_jax.preparation.directions import directions_said, shares_of_motion
from sora_jax.preparation.drafts import DETAILED, SHORT, Draft, Mix
from sora_jax.preparation.remote_captions import RemoteConfig

CONFIG = RecaptionConfig(
    batch=4,
    mix=Mix(own=0.05, short=0.3, detailed=0.65),
    min_words=2,
    max_tokens=None,
    max_repeats=2,
    opening=None,
    max_unclean=0,
    min_agreement=0.1,
    min_direction=0.1,
    server=RemoteConfig(frames=8, side=64, tiled=False, in_flight=2, timeout=1.0, retries=0),
)


def square(*, step, frames=5):
    """Returns a clip of a white square that moves `step` px, rows and columns, from frame to frame."""
    pixels_THWC = np.zeros((frames, 32, 32, 3), np.uint8)
    for number in range(frames):
        top, left = 12 + step[0] * number, 12 + step[1] * number
        pixels_THWC[number, top : top + 8, left : left + 8] = 255
    return Clip(pixels_THWC=pixels_THWC, fps=8.0, captions=(), source_id="square.gif")


RIGHT = square(step=(0, 1))


def filters(**changes):
    return DraftFilters(dataclasses.replace(CONFIG, **changes), tokenizer=BYTE_TOKENIZER, max_tokens=12)


@pytest.mark.parametrize(
    ("draft", "key", "said"),
    [
        (Draft(text=" \n"), "min_words", "has 0 words, under 2"),
        (Draft(text="a " * 20), "max_tokens", "has 21 tokens, over 12"),
        (Draft(text="a red dog and", whole=False), "max_tokens", "is cut off after 5 tokens"),
        (Draft(text="a b c d a b c d a b c"), None, None),
        (Draft(text="a a a a a a a"), "max_repeats", "says 'a a a a' 4 times"),
        (Draft(text="a d\N{REPLACEMENT CHARACTER}g runs"), "max_unclean", "has 1 characters that are no text"),
        (Draft(text="a dog\x07 runs"), "max_unclean", "has 1 characters"),
        (Draft(text="a dog\nruns"), None, None),
        (Draft(text="a red dog", agreement=0.05), "min_agreement", "agrees with its clip by 0.05, under 0.10"),
        (Draft(text="a red dog", agreement=0.15), None, None),
        (Draft(text="a square moves left"), "min_direction", "says left, where 0% of what moves goes"),
        (Draft(text="a square moves to the right"), None, None),
        (Draft(text="a square; the camera pans left"), None, None),
    ],
)
def test_each_fault_has_its_key_and_its_reason(draft, key, said):
    judge = filters()
    found = judge.judge(draft, RIGHT)
    if key is None:
        assert isinstance(found, Draft)
        assert not judge.refused
    else:
        assert found.key == key
        assert said in found.reason
        assert found.reason.endswith(f"(recaption.{key})")
        assert judge.refused == {key: 1}


@pytest.mark.parametrize("key", ["max_repeats", "max_unclean", "min_agreement", "min_direction"])
def test_a_filter_is_off_where_its_key_is_none(key):
    faulty = Draft(text="left left left left left left moves\x07 left", agreement=-1.0)
    off = dict.fromkeys(["max_repeats", "max_unclean", "min_agreement", "min_direction"])
    assert isinstance(filters(**off).judge(faulty, RIGHT), Draft)
    assert filters(**{**off, key: getattr(CONFIG, key)}).judge(faulty, RIGHT).key == key


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The video shows a red dog.", "A red dog."),
        ("In this video, we see a red dog", "A red dog"),
        ("the clip depicts a red dog", "a red dog"),
        ("A close-up video of a red dog", "A red dog"),
        ("In the video there is a red dog", "A red dog"),
        ("A video camera stands there", "A video camera stands there"),
        ("Videos of dogs", "Videos of dogs"),
    ],
)
def test_stock_openings_are_taken_off_and_counted(text, left):
    judge = filters()
    assert judge.judge(Draft(text=text), RIGHT).text == left
    assert judge.openings == (text != left)


def test_openings_are_chosen_or_kept():
    assert filters(opening="a red ").judge(Draft(text="A red dog runs"), RIGHT).text == "Dog runs"
    assert filters(opening="").judge(Draft(text="The video shows a dog"), RIGHT).text == "The video shows a dog"
    with pytest.raises(UserError, match=r"opening '\(' is no regular expression"):
        filters(opening="(")


def test_what_is_said_of_directions():
    assert directions_said("A car drives to the left, then moves quickly upwards") == ["left", "up"]
    assert directions_said("a dog on the right holds up its left paw") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a car drives right past the house", []),
        ("a car drives to the right past the house", ["right"]),
        ("a car drives right", ["right"]),
        ("a dog runs right after the ball and comes right at the door", []),
        ("a dog walks right in front of a bus", []),
        ("a dog walks right in the rain", ["right"]),
        ("a circle moves right behind a bar", ["right"]),
        ("a circle moves left behind a bar", ["left"]),
        ("the car she was driving left the road", []),
        ("a man walks down the busy street and up a path", []),
        ("a ball rolls down the hill", ["down"]),
        ("a ball goes quickly up on a dark background", ["up"]),
        ("a bird flies towards its left past a tree", ["left"]),
        ("a circle moves upright", []),
    ],
)
def test_a_word_that_may_be_a_direction_is_none_where_the_next_one_says_so(text, said):
    assert directions_said(text) == said


@pytest.mark.parametrize(("step", "way"), [((0, 1), "right"), ((0, -1), "left"), ((1, 0), "down"), ((-1, 0), "up")])
def test_motion_is_measured(step, way):
    shares = shares_of_motion(square(step=step).pixels_THWC)
    assert max(shares, key=shares.__getitem__) == way
    assert shares[way] > 0.8


def test_motion_of_what_does_not_move():
    assert shares_of_motion(RIGHT.pixels_THWC[:1]) is None
    assert sum(shares_of_motion(square(step=(0, 0)).pixels_THWC).values()) == 0
    assert filters().judge(Draft(text="a square moves left"), square(step=(0, 0))).key == "min_direction"


def test_captions_are_weighted_as_the_mix_says():
    both = [Draft(text="a", style=SHORT), Draft(text="b", style=DETAILED)]
    assert CONFIG.mix.weigh(both, ("c", "d"), (3.0, 1.0)) == {"a": 0.3, "b": 0.65, "c": 0.0375, "d": 0.0125}
    assert CONFIG.mix.weigh(both[:1], ("c",), None) == {"a": 0.95, "c": 0.05}
    assert CONFIG.mix.weigh([Draft(text="c")], ("c",), None) == {"c": 1.0}
    assert Mix(own=0, short=0, detailed=1).weigh(both[:1], ("c",), None) == {"a": 1.0}
    with pytest.raises(UserError, match="one must be more than 0"):
        Mix(own=1, short=0, detailed=0)


def test_the_digest_is_of_what_decides_alone():
    server = dataclasses.replace(CONFIG.server, in_flight=9, timeout=5.0)
    assert dataclasses.replace(CONFIG, batch=7, server=server).choice == CONFIG.choice
    assert dataclasses.replace(CONFIG, min_words=3).choice != CONFIG.choice
    assert dataclasses.replace(CONFIG, mix=Mix(own=0.1, short=0.3, detailed=0.6)).choice != CONFIG.choice
