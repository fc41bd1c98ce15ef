"""Words of captions, in any script."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.data.words import unseen, words_in_order, words_of


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
