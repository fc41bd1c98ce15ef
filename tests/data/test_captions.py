"""Text to tokens and back, and the caption files that people write."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.data.caption_tables import Written
from sora_jax.data.captions import (
    BYTES_PER_TOKEN,
    MOST_CHARACTERS,
    check_prompt,
    clean_caption,
    clean_captions,
    count_tokens,
    cut_caption,
    read_captions,
    tokenize,
)

JOINERS = "\u200c\u200d"
SHORT_WORDS = st.lists(st.text("abcäxyz,.", min_size=1, max_size=BYTES_PER_TOKEN // 2), max_size=12)


def detokenize(tokens_KQ: np.ndarray) -> list[bytes]:
    return [(row_Q[row_Q > 0] - 1).astype(np.uint8).tobytes() for row_Q in tokens_KQ]


@given(words=SHORT_WORDS)
def test_short_words_come_back_one_by_one(words):
    tokens_KQ = tokenize(" ".join(words), max_tokens=100)
    assert [piece.decode() for piece in detokenize(tokens_KQ)] == ["", *words]


@given(caption=st.text())
def test_the_bytes_of_any_text_come_back(caption):
    tokens_KQ = tokenize(caption, max_tokens=10_000)
    assert tokens_KQ.dtype == np.int32
    assert tokens_KQ.shape == (count_tokens(caption), BYTES_PER_TOKEN)
    assert b"".join(detokenize(tokens_KQ)).decode() == clean_caption(caption).replace(" ", "")
    filled_KQ = tokens_KQ > 0
    assert not filled_KQ[0].any(), "START is all zeros"
    assert filled_KQ[1:, 0].all(), "only START begins with padding"
    assert (np.diff(filled_KQ.astype(int), axis=1) <= 0).all(), "padding stands at the end"
    assert tokens_KQ.max() <= 256


@given(caption=st.text(), max_tokens=st.integers(1, 5))
def test_truncation_keeps_the_beginning(caption, max_tokens):
    whole_KQ = tokenize(caption, max_tokens=10_000)
    np.testing.assert_array_equal(tokenize(caption, max_tokens=max_tokens), whole_KQ[:max_tokens])


def test_long_words_are_cut_into_pieces():
    pieces = detokenize(tokenize("an extraordinarily tall cat", max_tokens=20))
    assert pieces == [b"", b"an", b"extraord", b"inarily", b"tall", b"cat"]
    tokens_KQ = tokenize("\u00ff~", max_tokens=2)
    assert tokens_KQ[1].tolist() == [0xC3 + 1, 0xBF + 1, ord("~") + 1, 0, 0, 0, 0, 0]


def test_the_empty_caption_is_start_alone():
    np.testing.assert_array_equal(tokenize("", max_tokens=9), np.zeros((1, BYTES_PER_TOKEN), np.int32))
    assert count_tokens(" \n") == 1


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
    cut, whole = cut_caption(caption, max_tokens), clean_caption(caption)
    assert count_tokens(cut) <= max_tokens
    assert whole.startswith(cut)
    assert bool(cut) == (bool(whole) and max_tokens > 1)
    if " " in cut:
        assert whole.split()[: len(cut.split())] == cut.split()


def test_prompts_are_checked_with_both_numbers():
    assert check_prompt("  a red\ncircle ", 4) == "a red circle"
    with pytest.raises(UserError, match=r"has 5 tokens and this model takes 4"):
        check_prompt("a red circle spins", 4)
    with pytest.raises(UserError, match="is empty"):
        check_prompt(" \x07 ", 4)


def folder(root: Path, *names: str, **texts: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"media")
    for name, text in texts.items():
        (root / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return root


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_jsonl_with_texts_lists_and_several_lines(tmp_path):
    text = lines(
        {"file": "b.mp4", "caption": "two  cats"},
        {"file": "./sub/a.PNG", "captions": ["one", "uno"]},
        {"file": "b.mp4", "caption": ["deux chats", " "]},
        {"file": "gone.mp4", "caption": "nobody"},
        {"file": "blank.gif", "caption": "  "},
    )
    folder(
        tmp_path,
        "b.mp4",
        "sub/a.PNG",
        "lone.webm",
        "blank.gif",
        ".hidden/c.mp4",
        "notes.md",
        captions__jsonl=text,
    )
    found = read_captions(tmp_path)
    assert found.by_file == {"b.mp4": ("two cats", "deux chats"), "sub/a.PNG": ("one", "uno")}
    assert list(found.by_file) == sorted(found.by_file)
    assert found.uncaptioned == ("blank.gif", "lone.webm")
    assert found.missing == ("gone.mp4",)


def test_csv_with_quotes_and_extra_columns(tmp_path):
    text = '\ufefflicence,file,caption\r\nfree,a.mp4,"a ""big"", red\nball"\r\n'
    assert read_captions(folder(tmp_path, "a.mp4", captions__csv=text)).by_file == {"a.mp4": ('a "big", red ball',)}


def test_sidecars(tmp_path):
    folder(tmp_path, "a.mp4", "b.c.mp4", "d.gif", a__txt="a cat\non a mat\n", b__c__txt="a dog", orphan__txt="x")
    found = read_captions(tmp_path)
    assert found.by_file == {"a.mp4": ("a cat on a mat",), "b.c.mp4": ("a dog",)}
    assert (found.uncaptioned, found.missing) == (("d.gif",), ("orphan.txt",))


def test_order_of_preference(tmp_path):
    folder(tmp_path, "a.mp4", a__txt="sidecar")
    assert read_captions(tmp_path).by_file["a.mp4"] == ("sidecar",)
    folder(tmp_path, captions__csv="file,caption\na.mp4,table\n")
    assert read_captions(tmp_path).by_file["a.mp4"] == ("table",)
    folder(tmp_path, captions__jsonl=lines({"file": "a.mp4", "caption": "lines"}))
    assert read_captions(tmp_path).by_file["a.mp4"] == ("lines",)
    folder(tmp_path, other__csv="file,caption\na.mp4,given\n")
    assert read_captions(tmp_path, tmp_path / "other.csv").by_file["a.mp4"] == ("given",)
    assert read_captions(tmp_path, "other.csv").by_file["a.mp4"] == ("given",)


def test_captions_may_be_absent_where_they_are_not_required(tmp_path):
    found = read_captions(folder(tmp_path, "a.mp4"), required=False)
    assert (found.by_file, found.uncaptioned) == ({}, ("a.mp4",))


@pytest.mark.parametrize(
    ("names", "texts", "words"),
    [
        ([], {"notes__md": "x"}, "holds 1 files but no video or image"),
        (
            ["a.mp4"],
            {},
            r"none of the 1 media files .* looked for captions.jsonl, captions.csv, captions.parquet and a .txt",
        ),
        (
            ["a.mp4"],
            {"captions__jsonl": lines({"file": "A.mp4", "caption": "x"})},
            "name 1 other files such as A.mp4",
        ),
        (["a.mp4"], {"captions__jsonl": "\n{broken\n"}, r"line 2 of .*captions.jsonl is not JSON"),
        (["a.mp4"], {"captions__jsonl": '["a.mp4", "x"]\n'}, r"line 1 of .*must be \{\"file\""),
        (["a.mp4"], {"captions__jsonl": '{"file": "a.mp4"}\n'}, r"line 1 of .*must have a \"caption\""),
        (
            ["a.mp4"],
            {"captions__csv": "name,text\na.mp4,x\n"},
            "must have the columns file and caption in its first line; found name",
        ),
        (
            ["a.mp4"],
            {"captions__csv": "file,caption\na.mp4,x\nb.mp4\n"},
            r"line 3 of .*has 1 fields and the header 2",
        ),
        (["a.mp4"], {"captions__csv": "file,caption\n,x\n"}, r"line 2 of .*lacks the file"),
    ],
)
def test_mistakes_are_named(tmp_path, names, texts, words):
    with pytest.raises(UserError, match=words):
        read_captions(folder(tmp_path, *names, **texts))


def test_missing_folder_missing_file_and_foreign_encoding(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist: pass --config.data.path=DIR"):
        read_captions(tmp_path / "nowhere")
    folder(tmp_path, "a.mp4")
    with pytest.raises(UserError, match=r"caption file c.jsonl does not exist"):
        read_captions(tmp_path, "c.jsonl")
    with pytest.raises(UserError, match=r"must end in .jsonl or .csv or .parquet"):
        read_captions(tmp_path, "a.mp4")
    (tmp_path / "captions.csv").write_bytes("file,caption\na.mp4,café\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_captions(tmp_path)


def test_what_is_far_too_large_or_deep_for_a_caption_is_named(tmp_path):
    folder(tmp_path, "a.mp4", a__txt="x" * (2**20 + 1))
    with pytest.raises(UserError, match=r"a\.txt has 1048577 bytes, over the 1048576 of a caption"):
        read_captions(tmp_path)
    folder(tmp_path, captions__jsonl='{"file": "a.mp4", "caption": ' + "[" * 100_000)
    with pytest.raises(UserError, match=r"line 1 of .*captions\.jsonl is not JSON"):
        read_captions(tmp_path)
