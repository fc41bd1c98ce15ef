"""How near written captions are to those that people wrote, and whether clips and captions find each other.

CIDEr-D and BLEU-4 count n-grams of words, as the reference code of the COCO captions does; case and punctuation do not
count. They tell models apart on data where nothing better is known; what a caption says of the drawn world,
`evaluation.caption_reader` judges.

Letters: N clips, C distinct captions, E features. numpy; float64 inside.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from sora_jax.core.errors import UserError

_LONGEST = 4  # words of an n-gram
_SIGMA = 6.0  # words by which a caption may be longer or shorter until CIDEr-D loses 39 %
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")

_Grams = collections.Counter[tuple[str, ...]]


def cider_d(written: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns CIDEr-D of each of N written captions against its clip's references, float64 (N,), in [0, 10].

    An n-gram weighs more the fewer clips have it in their references, so a score is of the whole set; one clip alone
    scores 0. Raises `UserError` where the two differ in length, are empty, or a clip has no reference.
    """
    _check_aligned(written, references)
    shown = [[_Caption.of(text) for text in texts] for texts in references]
    clips = collections.Counter(gram for captions in shown for gram in {gram for one in captions for gram in one.grams})
    rarity = {gram: np.log(len(shown) / count) for gram, count in clips.items()}
    unseen = np.log(len(shown))
    scores = [
        np.mean([_cider_of(_Caption.of(text), one, rarity, unseen) for one in captions])
        for text, captions in zip(written, shown, strict=True)
    ]
    return np.array(scores, np.float64)


def bleu4(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns BLEU-4 of N written captions together, in [0, 1]: the geometric mean of four precisions of n-grams.

    An n-gram is right as often as one reference has it; captions that are shorter than the nearest references lose.
    0 where no run of four words is right. Raises as `cider_d`.
    """
    _check_aligned(written, references)
    right, said = np.zeros(_LONGEST), np.zeros(_LONGEST)
    length = nearest = 0
    for text, texts in zip(written, references, strict=True):
        caption, shown = _Caption.of(text), [_Caption.of(one) for one in texts]
        for gram, count in caption.grams.items():
            said[len(gram) - 1] += count
            right[len(gram) - 1] += min(count, max(one.grams[gram] for one in shown))
        length += caption.length
        nearest += min((one.length for one in shown), key=lambda words: (abs(words - caption.length), words))
    if not right.all():
        return 0.0
    return float(np.exp(np.log(right / said).mean() + min(0.0, 1 - nearest / length)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How early the right one comes when all are sorted by similarity."""

    r1: float  # share of the queries whose right one comes first
    r5: float  # among the first 5
    r10: float  # among the first 10
    median_rank: float  # 1 is first


def retrieve(clips_NE: np.ndarray, captions_NE: np.ndarray, captions: Sequence[str]) -> tuple[Retrieval, Retrieval]:
    """Returns how well N clips find their captions, and the captions their clips, by the cosine of their features.

    Row n of both matrices and `captions[n]` belong together. Captions of the same words count as one, which has the
    features of the first: each is ranked among the distinct ones, and asks for the best placed of its clips. A tie, and
    what is not finite, counts as lost, so features that are all alike find nothing.
    Raises `UserError` where the three differ in length or are empty.
    """
    _check(len(captions) > 0, "no captions to retrieve; give at least one clip and its caption")
    _check(
        clips_NE.shape == captions_NE.shape and len(clips_NE) == len(captions),
        f"clips {clips_NE.shape}, captions {captions_NE.shape} and {len(captions)} texts must be as many, of one width",
    )
    numbers: dict[tuple[str, ...], int] = {}
    number_N = np.array([numbers.setdefault(_words(text), len(numbers)) for text in captions])
    _, first_C = np.unique(number_N, return_index=True)
    similar_NC = _unit(clips_NE) @ _unit(captions_NE[first_C]).T
    own_NC = number_N[:, None] == np.arange(len(first_C))
    return _ranked(similar_NC, own_NC), _ranked(similar_NC.T, own_NC.T)


def _ranked(similar_QA: np.ndarray, own_QA: np.ndarray) -> Retrieval:
    """Returns how early each of Q queries finds the first of its own answers among all A."""
    best_Q = np.where(own_QA, np.nan_to_num(similar_QA, nan=-np.inf), -np.inf).max(axis=1)
    # Not "above": what is not a number is neither above nor below.
    lost_QA = ~own_QA & ~((similar_QA < best_Q[:, None]) & np.isfinite(best_Q[:, None]))
    rank_Q = 1 + lost_QA.sum(axis=1)
    r1, r5, r10 = (float((rank_Q <= most).mean()) for most in (1, 5, 10))
    return Retrieval(r1=r1, r5=r5, r10=r10, median_rank=float(np.median(rank_Q)))


def _unit(features_NE: np.ndarray) -> np.ndarray:
    """Returns rows of length 1; those of length 0 stay."""
    features_NE = features_NE.astype(np.float64)
    length_N1 = np.linalg.norm(features_NE, axis=1, keepdims=True)
    return features_NE / np.where(length_N1 == 0, 1, length_N1)


@dataclasses.dataclass(frozen=True)
class _Caption:
    grams: _Grams  # runs of 1 to 4 words, and how often each comes
    length: int  # words

    @staticmethod
    def of(text: str) -> "_Caption":
        words = _words(text)
        runs = (words[start : start + n] for n in range(1, _LONGEST + 1) for start in range(len(words) - n + 1))
        return _Caption(collections.Counter(runs), len(words))


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


def _cider_of(caption: _Caption, shown: _Caption, rarity: dict[tuple[str, ...], float], unseen: float) -> float:
    """Returns CIDEr-D against one reference: the mean over n of a cosine that repeating words cannot raise."""
    products, squares, shown_squares = np.zeros((3, _LONGEST))
    for gram, count in caption.grams.items():
        weight, other = count * rarity.get(gram, unseen), shown.grams[gram] * rarity.get(gram, unseen)
        squares[len(gram) - 1] += weight**2
        products[len(gram) - 1] += min(weight, other) * other
    for gram, count in shown.grams.items():
        shown_squares[len(gram) - 1] += (count * rarity[gram]) ** 2
    norms = np.sqrt(squares * shown_squares)
    cosines = products / np.where(norms == 0, 1, norms)
    longer = caption.length - shown.length
    return float(10 * cosines.mean() * np.exp(-(longer**2) / (2 * _SIGMA**2)))


def _check_aligned(written: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    _check(len(written) > 0, "no captions to score; give at least one")
    _check(
        len(written) == len(references),
        f"{len(written)} written captions, but references of {len(references)} clips; give as many",
    )
    for number, texts in enumerate(references):
        _check(len(texts) > 0, f"clip {number} has no reference caption; leave it out")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
