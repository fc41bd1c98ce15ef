"""Text to tokens and back."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.data.sources.caption_tables import Written
from sora_jax.data.tokens import (
    BYTE_TOKENIZER,
    BYTES_PER_TOKEN,
    MOST_CHARACTERS,
    check_prompt,
    clean_caption,
    clean_captions,
)

JOINERS = "\u200c\u200d"
SHORT_WORDS = st.lists(st.text("abcäxyz,.", min_size=1, max_size=BYTES_PER_TOKEN // 2), max_size=12)


def tokenize(caption: str) -> np.ndarray:
    return BYTE_TOKENIZER.encode([caption])[0]["text_BKQ"]


def detokenize(tokens_KQ: np.ndarray) -> list[bytes]:
    return [(row_Q[row_Q > 0] - 1).astype(np.uint8).tobytes() for row_Q in tokens_KQ]


@given(words=SHORT_WORDS)
def test_short_words_come_back_one_by_one(words):
    tokens_KQ = tokenize(" ".join(words))
    assert [piece.decode() for piece in detokenize(tokens_KQ)] == ["", *words]


@given(caption=st.text())
def test_the_bytes_of_any_text_come_back(caption):
    tokens_KQ = tokenize(caption)
    assert tokens_KQ.dtype == np.int32
    assert tokens_KQ.shape == (BYTE_TOKENIZER.count(caption), BYTES_PER_TOKEN)
    assert b"".join(detokenize(tokens_KQ)).decode() == clean_caption(caption).replace(" ", "")
    filled_KQ = tokens_KQ > 0
    assert not filled_KQ[0].any(), "START is all zeros"
    assert filled_KQ[1:, 0].all(), "only START begins with padding"
    assert (np.diff(filled_KQ.astype(int), axis=1) <= 0).all(), "padding stands at the end"
    assert tokens_KQ.max() <= 256


def test_long_words_are_cut_into_pieces():
    pieces = detokenize(tokenize("an extraordinarily tall cat"))
    assert pieces == [b"", b"an", b"extraord", b"inarily", b"tall", b"cat"]
    tokens_KQ = tokenize("\u00ff~")
    assert tokens_KQ[1].tolist() == [0xC3 + 1, 0xBF + 1, ord("~") + 1, 0, 0, 0, 0, 0]


def test_the_empty_caption_is_start_alone():
    np.testing.assert_array_equal(tokenize(""), np.zeros((1, BYTES_PER_TOKEN), np.int32))
    assert BYTE_TOKENIZER.count(" \n") == 1


@given(caption=st.text(st.characters() | st.sampled_from("\u200b\u200c\u200d\ufeff\u00ad\u202e\u0301 e\x00")))
def test_cleaning_is_settled_after_once(caption):
    cleaned = clean_caption(caption)
    assert clean_caption(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    assert {unicodedata.category(c) for c in cleaned if c not in JOINERS}.isdisjoint({"Cc", "Cs", "Cf"})
    assert cleaned == "" or all(word.strip(JOINERS) for word in cleaned.split(" "))


def test_cleaning_composes_and_collapses():
    assert clean_caption("  a\tcafe\u0301\x00in\u00a0 \r\nParis\ud800 ") == "a caf\u00e9 in Paris"


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("\ufeff\ufeffa dog", "a dog"),
        ("a d\u200bo\u00adg\u2060", "a dog"),
        ("\u202ea dog\u202c", "a dog"),
        ("e\u200b\u0301", "\u00e9"),
        ("\u200b \u200d\u200c \ufeff\u2028", ""),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\U0001f469\u200d\U0001f680 flies", "\U0001f469\u200d\U0001f680 flies"),
    ],
)
def test_what_cannot_be_seen_is_no_part_of_a_caption(written, cleaned):
    assert clean_caption(written) == cleaned


def test_captions_that_are_empty_or_endless_do_no_harm():
    written = [Written("\ufeff \x00", 5), Written("x" * 2**20, 2), Written("\u200d"), Written(" a  dog ", 3)]
    assert clean_captions(written) == (("x" * MOST_CHARACTERS, "a dog"), (2, 3))
    assert clean_captions(written[:1]) == ((), None)


@given(caption=st.text(), max_tokens=st.integers(1, 9))
def test_a_caption_is_cut_to_tokens_at_words_and_never_to_nothing(caption, max_tokens):
    cut, whole = BYTE_TOKENIZER.cut(caption, max_tokens), clean_caption(caption)
    assert BYTE_TOKENIZER.count(cut) <= max_tokens
    assert whole.startswith(cut)
    assert bool(cut) == (bool(whole) and max_tokens > 1)
    if " " in cut:
        assert whole.split()[: len(cut.split())] == cut.split()


def test_prompts_are_checked_with_both_numbers():
    assert check_prompt("  a red\ncircle ", BYTE_TOKENIZER, max_tokens=4) == "a red circle"
    with pytest.raises(UserError, match=r"has 5 tokens and this model takes 4"):
        check_prompt("a red circle spins", BYTE_TOKENIZER, max_tokens=4)
    with pytest.raises(UserError, match="is empty"):
        check_prompt(" \x07 ", BYTE_TOKENIZER, max_tokens=4)
