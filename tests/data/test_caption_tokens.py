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
from sora_jax.data.tokens import BYTE_TOKENIZER, BYTES_PER_TOKEN

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
    (tokens,) = CAPTION_TOKENIZER.encode([text])
    tokens_KQ = tokens["text_BKQ"]
    assert read_tokens(tokens_KQ) == text
    assert tokens_KQ.shape == (CAPTION_TOKENIZER.count(text), BYTES_PER_TOKEN)
    assert tokens_KQ.max() < SLOT_VALUES
    assert (tokens_KQ[0] == 0).all()
    assert (tokens_KQ[-1] == end_token()).all()
    assert CAPTION_TOKENIZER.count(text) > BYTE_TOKENIZER.count(text)


def test_short_words_are_the_tokens_that_a_generator_reads():
    text = "a red triangle moves left"
    assert (spell_words(text) == BYTE_TOKENIZER.encode([text])[0]["text_BKQ"]).all()


def test_a_word_that_goes_on_is_told_from_one_that_ends():
    whole, goes_on = spell_words("triangle s"), spell_words("triangles")
    assert read_tokens(whole) == "triangle s"
    assert goes_on[1, -1] == MARK
    assert read_tokens(goes_on[:2]) == ""


def test_what_stands_after_the_end_is_not_read():
    (tokens,) = CAPTION_TOKENIZER.encode(["a cat"])
    assert read_tokens(np.concatenate([tokens["text_BKQ"], spell_words("on a mat")])) == "a cat"


@pytest.mark.parametrize("most", [2, 3, 5, 9, 30])
def test_a_text_is_cut_to_whole_words(most):
    text = "incomprehensibilities of a background that moves"
    cut = CAPTION_TOKENIZER.cut(text, most)
    assert CAPTION_TOKENIZER.count(cut) <= most
    assert text.startswith(cut)
    longer = " ".join(text.split()[: len(cut.split()) + 1])
    assert cut == text or CAPTION_TOKENIZER.count(longer) > most
