import os

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip
from sora_jax.data.sources.base import fingerprint
from sora_jax.data.sources.split import split_source


class Named:
    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        pixels = np.full((1, 2, 2, 3), index % 256, np.uint8)
        return Clip(pixels_THWC=pixels, fps=8.0, captions=(), source_id=self.names[index])

    def source_id(self, index):
        return self.names[index]

    def origin(self, index):
        return f"origin of {self.names[index]}"


def names(source):
    return [source.source_id(index) for index in range(len(source))]


MANY = Named([f"film_{number}.mp4" for number in range(2000)])


def test_a_clip_is_on_one_side_by_its_name_alone():
    training, heldout = split_source(MANY, 0.1)
    assert sorted(names(training) + names(heldout)) == sorted(MANY.names)
    assert len(heldout) == pytest.approx(200, abs=50)
    backwards = Named([*MANY.names[::-1], "another.mp4"])
    assert set(names(split_source(backwards, 0.1)[1])) - {"another.mp4"} == set(names(heldout))
    assert heldout[3].source_id == heldout.source_id(3)
    assert heldout.origin(3) == f"origin of {heldout.source_id(3)}"
    assert fingerprint(heldout) != fingerprint(training)


def test_a_larger_share_holds_out_the_same_and_more():
    held = [set(names(split_source(MANY, share)[1])) for share in (0.05, 0.1, 0.5)]
    assert held[0] < held[1] < held[2]


def test_a_name_may_be_bytes_that_are_no_text():
    held = [name.encode() + b"\xff\xfe" for name in MANY.names] + [b"film_7.mp4"]
    strange = Named([*map(os.fsdecode, held), "half a pair \ud800"])
    training, heldout = split_source(strange, 0.5)
    assert sorted(names(training) + names(heldout)) == sorted(strange.names)
    assert ("film_7.mp4" in names(heldout)) == ("film_7.mp4" in names(split_source(MANY, 0.5)[1]))


def test_windows_of_a_file_are_on_one_side():
    windows = Named([f"{name}#{first}-{first + 16}" for name in MANY.names for first in (0, 17, 40)])
    found = names(split_source(windows, 0.1)[1])
    files, counts = np.unique([name.split("#")[0] for name in found], return_counts=True)
    assert set(files) == set(names(split_source(MANY, 0.1)[1]))
    assert set(counts) == {3}


@pytest.mark.parametrize(
    ("share", "said"),
    [(1e-9, "of 2000 clips holds none out: raise it"), (1 - 1e-9, "leaves none to train on: lower it")],
)
def test_a_side_without_clips_is_refused(share, said):
    with pytest.raises(UserError, match=said):
        split_source(MANY, share)
