"""Captions are as near to others as the reference code says, and those that belong together find each other."""

import dataclasses

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.evaluation.captions import Retrieval, bleu4, cider_d, retrieve

WRITTEN = [
    "a red circle moves left on a dark background",
    "a blue square square moves up on the grey background",
    "a green triangle",
    "a cyan circle stays still behind a bar on a light background today",
]
REFERENCES = [
    [
        "a red circle moves left",
        "a red circle moves left on a dark background",
        "on a dark background a large red circle moves to the left",
    ],
    [
        "a blue square moves up on a grey background",
        "a blue square and a red circle moves up on a grey background",
    ],
    [
        "a green triangle moves down on a light background",
        "a small green triangle moving down over a light background",
    ],
    [
        "a cyan circle stays still behind a bar",
        "a cyan circle stays still on a light background behind a bar",
    ],
]


def test_scores_are_those_of_the_reference_code():
    # pycocoevalcap at its newest, CiderScorer(n=4, sigma=6.0) and BleuScorer(n=4) with the closest length.
    np.testing.assert_allclose(
        cider_d(WRITTEN, REFERENCES), [6.03198963, 4.04571925, 1.89277468, 5.85749626], rtol=1e-8
    )
    assert bleu4(WRITTEN, REFERENCES) == pytest.approx(0.6628894087791448, rel=1e-6)


def test_the_reference_itself_scores_all_and_case_and_stops_do_not_count():
    texts = ["A red circle moves left.", "a blue square, moving up", "one green triangle stays still"]
    shown = [[text.lower().replace(",", "").replace(".", "")] for text in texts]
    np.testing.assert_allclose(cider_d(texts, shown), 10)
    assert bleu4(texts, shown) == pytest.approx(1)


def test_what_has_nothing_in_common_scores_nothing():
    texts, shown = ["", "two dogs run over there", "one"], [["a b c d"], ["e f g h"], ["i j k l"]]
    np.testing.assert_array_equal(cider_d(texts, shown), 0)
    assert bleu4(texts, shown) == bleu4([""], [["a b c d"]]) == 0
    # Three right words are no run of four.
    assert bleu4(["a b c"], [["a b c d"]]) == 0


def test_repeating_words_and_stopping_early_do_not_pay():
    shown = [["a red circle moves left on dark ground"], ["a blue square moves up on light ground"]]
    fair = cider_d([texts[0] for texts in shown], shown)
    assert cider_d(["a red circle moves left on dark ground on dark ground", ""], shown)[0] < 0.9 * fair[0]
    assert bleu4(["a red circle moves"], [shown[0]]) == pytest.approx(np.exp(1 - 8 / 4))
    assert bleu4([shown[0][0] * 2], [shown[0]]) < 0.5


def test_captions_and_references_must_be_as_many():
    for score in (cider_d, bleu4):
        with pytest.raises(UserError, match="2 written captions, but references of 1 clips"):
            score(["a", "b"], [["a"]])
        with pytest.raises(UserError, match="clip 1 has no reference"):
            score(["a", "b"], [["a"], []])
        with pytest.raises(UserError, match="at least one"):
            score([], [])


def test_each_finds_the_other_where_features_agree():
    features = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    texts = [f"caption {n}" for n in range(20)]
    perfect = Retrieval(r1=1, r5=1, r10=1, median_rank=1)
    # Lengths do not count, cosines do.
    scale = np.linspace(0.1, 10, 20)[:, None]
    assert retrieve(features * scale, features, texts) == (perfect, perfect)
    found, _ = retrieve(-features, features, texts)
    assert found == Retrieval(r1=0, r5=0, r10=0, median_rank=20)


def test_ranks_are_counted_each_way():
    similar = np.array([[0.8, 0.6, 0.0], [0.96, 0.28, 0.0], [0.0, 0.6, 0.8]])
    to_captions, to_clips = retrieve(similar, np.eye(3), ["one", "two", "three"])
    # Clips find their captions at 1, 2, 1; captions their clips at 2, 3, 1.
    assert dataclasses.astuple(to_captions) == pytest.approx((2 / 3, 1, 1, 1))
    assert dataclasses.astuple(to_clips) == pytest.approx((1 / 3, 1, 1, 2))


def test_equal_captions_are_one():
    features = np.eye(4)[[0, 0, 1, 2]]
    clips = features + 0.01 * np.random.default_rng(0).normal(size=features.shape)
    texts = ["a red circle", "A  red circle.", "a blue square", "a green square"]
    perfect = Retrieval(r1=1, r5=1, r10=1, median_rank=1)
    assert retrieve(clips, features, texts) == (perfect, perfect)
    # Had they counted apart, either would hide the other.
    apart, _ = retrieve(clips, features, ["a", "b", "c", "d"])
    assert apart.r1 == 0.5


def test_features_that_tell_nothing_find_nothing():
    texts = [f"caption {n}" for n in range(30)]
    nothing = Retrieval(r1=0, r5=0, r10=0, median_rank=30)
    noise = np.random.default_rng(0).normal(size=(30, 4))
    for clips in (np.ones((30, 4)), np.zeros((30, 4)), np.full((30, 4), np.nan)):
        for captions in (np.ones((30, 4)), np.full((30, 4), np.nan)):
            assert retrieve(clips, captions, texts) == (nothing, nothing)
    assert retrieve(np.full((30, 4), np.nan), noise, texts) == (nothing, nothing)
    with pytest.raises(UserError, match="must be as many"):
        retrieve(noise, noise[1:], texts)
    with pytest.raises(UserError, match="at least one"):
        retrieve(noise[:0], noise[:0], [])
