"""Words of captions, in any script."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.data.tokens import clean_caption
from sora_jax.data.words import respell, spellings_of, unseen, words_in_order, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red circle, moving RIGHT!", {"a", "red", "circle", "moving", "right"}),
        ("Ein Ka\u0308fer über-all", {"ein", "käfer", "über", "all"}),
        ("赤い丸が右へ", {"赤", "い", "丸", "が", "右", "へ"}),
        ("빨간 원", {"빨간", "원"}),
        ("लाल वृत्त", {"लाल", "वृत्त"}),
        ("красный круг 3D", {"красный", "круг", "3d"}),
        ("cat猫dog", {"cat", "猫", "dog"}),
        ("🐕 — ...", set()),
        ("", set()),
    ],
)
def test_words_are_told_apart(text, words):
    assert words_of(text) == words


@given(st.text(max_size=60))
def test_a_text_has_no_words_that_it_has_not(text):
    words = words_of(text)
    assert "" not in words
    assert unseen([text], words) == []
    assert set(unseen([text], set())) == words


def test_unseen_words_are_told_once_in_their_order():
    prompts = ["a purple dragon on a hill", "Dragon and a red circle"]
    assert unseen(prompts, words_of("a red circle and a square on")) == ["purple", "dragon", "hill"]


def test_words_come_in_order_and_as_often_as_they_are_there():
    assert words_in_order("The cat, the 猫 and THE dog") == ["the", "cat", "the", "猫", "and", "the", "dog"]


def test_spellings_are_what_stands_between_spaces():
    assert spellings_of("A red circle, in  Paris. A red") == {"A", "red", "circle,", "in", "Paris."}
    assert spellings_of("x" * 33 + " fits") == {"fits"}


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("A red circle moves right.", "a red circle moves right"),
        ("RED CIRCLE, moving RIGHT!", "red circle moving right"),
        ("a \u201cred\u201d circle in paris", "a red circle in Paris"),
        ("a red circle in Paris", "a red circle in Paris"),
        ("a Red cat. \u2014 ...", "a red cat. \u2014 ..."),
        ("", ""),
    ],
)
def test_a_prompt_is_spelled_as_captions_are(prompt, read):
    spellings = spellings_of("a red circle moves right") | spellings_of("in Paris") | {"moving"}
    assert respell(prompt, spellings) == read


@given(st.text(max_size=60), st.sets(st.text(min_size=1, max_size=5), max_size=5))
def test_respelling_keeps_the_number_of_words_and_what_is_known(prompt, spellings):
    before, after = clean_caption(prompt).split(), respell(prompt, spellings).split(" ") if prompt.strip() else []
    if before:
        assert len(before) == len(after)
        assert all(new == old or new in spellings for old, new in zip(before, after, strict=True))
    assert respell(prompt, before) == clean_caption(prompt)
