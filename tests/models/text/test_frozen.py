"""Frozen encoders: states that batches do not change, what is remembered and let go, texts cut and cleaned."""

import pickle
import sys
from importlib import metadata

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.shards.files import write_header
from sora_jax.models.text import build_encoder, frozen
from sora_jax.models.text.cleaning import PLAIN, WAN
from tests.small_encoder import text_config, write_t5

TEXTS = ("a red circle moves right", "", "a blue square and a green triangle moves up and left and down " * 4, "red")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("umt5"), depth=1)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return build_encoder(text_config("umt5", folder)).tokenizer


def test_a_text_has_its_states_whatever_shares_its_batch(tokenizer, folder):
    together = tokenizer.encode(TEXTS)
    alone = build_encoder(text_config("umt5", folder)).tokenizer
    for text, found in zip(TEXTS, together, strict=True):
        (expected,) = alone.encode([text])
        assert len(found["text_BKE"]) == tokenizer.count(text)
        ours, theirs = found["text_BKE"].astype(np.float32), expected["text_BKE"].astype(np.float32)
        np.testing.assert_allclose(ours, theirs, atol=0.02, rtol=0.01)  # a rounding of bfloat16


def test_what_was_asked_lately_needs_no_network_and_release_lets_it_go(folder, monkeypatch):
    encoder = build_encoder(text_config("umt5", folder))
    (first,) = encoder.tokenizer.encode(["red"])
    encoder.release()
    monkeypatch.setattr(frozen, "Network", None)
    assert encoder.tokenizer.encode(["red", "red"])[1]["text_BKE"] is first["text_BKE"]
    with pytest.raises(TypeError, match="not callable"):
        encoder.tokenizer.encode(["blue"])
    monkeypatch.setattr(frozen, "_KEPT", 0)
    encoder.tokenizer.encode(["red"])
    with pytest.raises(TypeError, match="not callable"):
        encoder.tokenizer.encode(["red"])


def test_a_pickled_one_brings_no_network(tokenizer):
    tokenizer.encode(["red"])
    sent = pickle.dumps(tokenizer)
    assert len(sent) < 5000
    assert pickle.loads(sent).recipe == tokenizer.recipe


@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[2], "redredredred red", "Ωredred", ""])
@pytest.mark.parametrize("most", [1, 2, 5, 9, 1000])
def test_a_cut_text_is_the_longest_that_fits(tokenizer, text, most):
    cut = tokenizer.cut(text, most)
    assert text.startswith(cut)
    assert tokenizer.count(cut) <= most
    if cut != text.strip():
        words, kept = text.split(), cut.split()
        longer = " ".join(words[: len(kept) + 1]) if cut == " ".join(words[: len(kept)]) else text[: len(cut) + 1]
        assert tokenizer.count(longer) > most


def test_texts_are_cleaned_as_wans_were():
    assert WAN.clean("  a&amp;amp;b \n\t “red”　circle  ") == 'a&b "red" circle'
    assert WAN.clean("sch&ouml;n, RED，blue") == "schön, RED,blue"
    assert PLAIN.clean(" a&amp;b \n c") == "a&amp;b c"
    assert PLAIN.version == "plain, version 1"


def test_a_recipe_that_changed_is_refused_by_the_name_of_what_changed(tokenizer, monkeypatch, tmp_path):
    """Other weights, another tokenizer and other lengths: tests/experiment/test_frozen_text.py."""
    write_header(tmp_path, tokenizer.recipe)
    write_header(tmp_path, tokenizer.recipe)
    assert tokenizer.recipe["cleaning"] == f"wan, version 1, ftfy {metadata.version('ftfy')}"
    monkeypatch.setattr(metadata, "version", lambda package: "0.1")
    with pytest.raises(UserError, match=r"the cleaning of texts changed from wan, .* to wan, version 1, ftfy 0\.1: "):
        write_header(tmp_path, tokenizer.recipe)

    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(UserError, match=r"needs ftfy, .*: pip install 'sora-jax\[text\]'"):
        _ = tokenizer.recipe


def test_cleaning_without_ftfy_is_refused(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(UserError, match=r"needs ftfy, .*: pip install 'sora-jax\[text\]'"):
        tokenizer.count("red")


def test_a_tokenizer_of_other_weights_is_refused(tmp_path):
    folder = write_t5(tmp_path, vocabulary=10)
    with pytest.raises(UserError, match="knows 10 pieces and the tokenizer gives number"):
        build_encoder(text_config("umt5", folder)).tokenizer.encode(["a red circle"])
