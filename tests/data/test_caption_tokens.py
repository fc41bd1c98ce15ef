import numpy as np
import pytest

from sora_jax.data.caption_tokens import (
    CAPTION_TOKENIZER,
    MARK,
    SLOT_VALUES,
    end_token,
    read_tokens,
    spell_words,
)
from sora_jax.data.tokens import BYTE_TOKENIZER

TEXTS = [
    "",
    "a red triangle moves left",
    "triangles of a background",
    "incomprehensibilities unbelievably 12345678 123456789",
    "größer als die Donaudampfschifffahrtsgesellschaft",
    "猫が走っています very 🙂🙂🙂🙂 fine",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_from_its_tokens(text):
    tokens_KQ = spell_words(text)
    assert read_tokens(tokens_KQ) == text
    assert read_tokens(np.concatenate([tokens_KQ, end_token()[None], spell_words("on a mat")])) == text
    assert tokens_KQ.max() < SLOT_VALUES
    assert (tokens_KQ[0] == 0).all()


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_fills_the_tokens_that_rows_are_planned_with(text):
    (tokens,) = CAPTION_TOKENIZER.encode([text])
    assert tokens["text_BKQ"].shape[0] <= BYTE_TOKENIZER.count(text) == CAPTION_TOKENIZER.count(text)
    read = read_tokens(tokens["text_BKQ"])
    # Nothing but the ends of captions with very long words is lost.
    assert read == text if max(map(len, text.encode().split()), default=0) < 16 else text.startswith(read)


def test_short_words_are_the_tokens_that_a_generator_reads():
    text = "a red triangle moves left"
    assert (spell_words(text) == BYTE_TOKENIZER.encode([text])[0]["text_BKQ"]).all()


def test_a_word_that_goes_on_is_told_from_one_that_ends():
    whole, goes_on = spell_words("triangle s"), spell_words("triangles")
    assert read_tokens(whole) == "triangle s"
    assert goes_on[1, -1] == MARK
    assert read_tokens(goes_on[:2]) == ""
