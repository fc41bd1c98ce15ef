"""Clips as they will be encoded, of one collection or of several."""

import numpy as np
import pytest

from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.fitting import ClipBudget, Collection, FittedSource
from sora_jax.data.sources.base import fingerprint
from sora_jax.data.tokens import BYTE_TOKENIZER

LIMITS = ClipBudget(
    stride=(4, 4, 4),
    min_tokens=1,
    max_tokens=24,
    max_frames=17,
    tokenizer=BYTE_TOKENIZER,
    max_text_tokens=10,
    max_bad_share=0.5,
)
SMALL = ClipBudget(
    stride=(4, 4, 4),
    min_tokens=1,
    max_tokens=4,
    max_frames=1,
    tokenizer=BYTE_TOKENIZER,
    max_text_tokens=10,
    max_bad_share=0.5,
)


class Clips:
    """Clips of the given sizes; None does not decode."""

    def __init__(self, *sizes, name="clip"):
        self.sizes, self.name = sizes, name

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        size = self.sizes[index]
        if size is None:
            raise BadClip(self.source_id(index), "it is torn")
        pixels = np.random.default_rng(index).integers(0, 256, size=(*size, 3), dtype=np.uint8)
        return Clip(pixels_THWC=pixels, fps=8.0, captions=(), source_id=self.source_id(index))

    def source_id(self, index):
        return f"{self.name}{index}"

    def origin(self, index):
        return f"made from {self.sizes[index]}"


def test_clips_come_as_they_are_encoded():
    source = Clips((1, 8, 8), (5, 8, 12), None, (1, 24, 24))
    fitted = FittedSource([Collection(name="main", source=source, limits=LIMITS)])
    assert len(fitted) == 4
    assert fingerprint(fitted) == fingerprint(source)
    for index in (0, 1, 3):
        np.testing.assert_array_equal(fitted[index].pixels_THWC, LIMITS.fit(source, index).clip.pixels_THWC)
    assert fitted[3].pixels_THWC.shape[1] < 24, "24 x 24 px are 36 tokens, more than the 24 allowed"
    with pytest.raises(BadClip, match="torn"):
        fitted[2]


def test_collections_follow_each_other_each_with_its_limits():
    films, stills = Clips((5, 16, 16), None, name="film"), Clips((5, 16, 16), (1, 8, 8), (1, 16, 8), name="still")
    fitted = FittedSource(
        [Collection(name="main", source=films, limits=LIMITS), Collection(name="stills", source=stills, limits=SMALL)]
    )
    assert [fitted.source_id(index) for index in range(len(fitted))] == ["film0", "film1", "still0", "still1", "still2"]
    assert [fitted.origin(index) for index in (1, 3)] == [films.origin(1), stills.origin(1)]
    assert fitted[0].pixels_THWC.shape == (1, 16, 16, 3), "of 32 tokens 24 are allowed"
    assert fitted[2].pixels_THWC.shape == (1, 8, 8, 3)
    assert fitted[4].source_id == "still2"
    with pytest.raises(BadClip, match="film1"):
        fitted[1]
