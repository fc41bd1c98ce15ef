"""Crops: pure functions of (seed, number), cut from clips, shared by processes."""

import collections
import logging

import numpy as np
import pytest

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.crops import ClipCache, CropConfig, CropStream

SIZES = [(1, 9, 7), (6, 8, 8), (9, 12, 16), (5, 6, 6), (3, 10, 9), (7, 6, 11)]
BUCKETS = ((1, 6, 6, 4), (5, 6, 4, 2), (3, 2, 5, 6))


class Coordinates:
    """Clips whose every pixel says where it is from: (16 clip + frame, row, column); those in `bad` cannot be read."""

    def __init__(self, sizes=SIZES, *, bad=()):
        self.sizes = sizes
        self.bad = bad
        self.read = []

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.bad:
            raise BadClip(self.source_id(index), "it cannot be read")
        frame, row, column = np.indices(self.sizes[index])
        pixels = np.stack([16 * index + frame, row, column], axis=-1).astype(np.uint8)
        return Clip(pixels_THWC=pixels, fps=8.0, captions=(), source_id=self.source_id(index))

    def source_id(self, index):
        return f"clip-{index}"

    def fingerprint(self):
        return f"coordinates {self.sizes}"


def stream(source=None, *, buckets=BUCKETS, seed=0, cache_mb=1, **process):
    source = Coordinates() if source is None else source
    return CropStream(source, CropConfig(buckets=buckets, cache_mb=cache_mb), seed=seed, **process)


def windows(crops, numbers):
    return [window for number in numbers for window in crops[number]["clip_BTHWC"]]


def origin(window):
    """Returns (clip, frame, row, column) of the window's first pixel."""
    first, row, column = window[0, 0, 0].tolist()
    return first // 16, first % 16, row, column


def test_buckets_take_turns():
    crops = stream()
    for number in range(7):
        frames, height, width, clips = BUCKETS[number % 3]
        (name,) = crops[number]
        assert name == "clip_BTHWC"
        assert crops[number][name].shape == (clips, frames, height, width, 3)
        assert crops[number][name].dtype == np.uint8


def test_windows_are_cut_from_clips():
    source = Coordinates()
    for window in windows(stream(), range(12)):
        clip, *corner = origin(window)
        cut = tuple(slice(c, c + s) for c, s in zip(corner, window.shape, strict=False))
        np.testing.assert_array_equal(window, source[clip].pixels_THWC[cut])


def test_every_clip_and_every_corner_is_drawn():
    # 5 x 6 x 4 pixels fit four of the clips, at this many corners.
    fitting = {n: [have - want + 1 for have, want in zip(SIZES[n], (5, 6, 4), strict=True)] for n in (1, 2, 3, 5)}
    seen = [origin(window) for window in windows(stream(buckets=((5, 6, 4, 64),)), range(40))]
    for n, room in fitting.items():
        mine = [corner for clip, *corner in seen if clip == n]
        assert len(mine) / len(seen) == pytest.approx(1 / len(fitting), abs=0.04)
        for axis in range(3):
            assert {corner[axis] for corner in mine} == set(range(room[axis])), (n, axis)
    corners = collections.Counter(corner for clip, *_, corner in seen if clip == 3).values()
    assert max(corners) < 1.5 * min(corners), "corners of a clip are equally likely"


def test_a_batch_depends_on_the_seed_and_its_number_alone():
    forwards, backwards = stream(), stream(cache_mb=0)
    expected = {number: forwards[number]["clip_BTHWC"] for number in range(9)}
    for number in reversed(range(9)):
        np.testing.assert_array_equal(backwards[number]["clip_BTHWC"], expected[number])
    assert not np.array_equal(expected[0], expected[3])
    assert not np.array_equal(stream(seed=1)[0]["clip_BTHWC"], expected[0])


@pytest.mark.parametrize("start", [0, 5])
def test_batches_go_on_from_any_number(start):
    crops = stream()
    for number, batch in zip(range(start, start + 5), crops.batches(start), strict=False):
        np.testing.assert_array_equal(batch["clip_BTHWC"], crops[number]["clip_BTHWC"])


@pytest.mark.parametrize("processes", [1, 2])
def test_the_shares_of_processes_make_up_the_whole(processes):
    parts = [stream(process_index=index, process_count=processes) for index in range(processes)]
    for number in range(6):
        joined = np.concatenate([part[number]["clip_BTHWC"] for part in parts])
        np.testing.assert_array_equal(joined, stream()[number]["clip_BTHWC"])


def test_processes_that_cannot_share_a_bucket_are_refused():
    with pytest.raises(UserError, match=r"bucket \(5, 6, 4, 2\) holds 2 clips, not divisible by 4 processes"):
        stream(process_count=4)


def test_bad_clips_are_passed_over_and_named_once(caplog):
    with caplog.at_level(logging.WARNING):
        seen = windows(stream(Coordinates(bad=(1, 3))), range(30))
    assert {origin(window)[0] for window in seen} == {0, 2, 4, 5}
    named = [record.getMessage() for record in caplog.records]
    assert sorted(named) == ["skipped clip-1: it cannot be read", "skipped clip-3: it cannot be read"]


@pytest.mark.parametrize("bucket", [(10, 6, 6, 1), (1, 13, 1, 1), (1, 1, 17, 1)])
def test_a_bucket_larger_than_every_clip_is_an_error(bucket):
    crops = stream(buckets=(bucket,))
    frames, height, width, _ = bucket
    with pytest.raises(DataError, match=f"holds a window of {frames} frames of {height}x{width} px"):
        crops[0]


def test_a_source_of_bad_clips_is_an_error():
    with pytest.raises(DataError, match="none of 200 clips"):
        stream(Coordinates(bad=range(6)))[0]


@pytest.mark.parametrize("buckets", [(), ((1, 2, 3),), ((1, 8, 8, 0),)])
def test_impossible_buckets_are_refused(buckets):
    with pytest.raises(UserError, match="buckets must be"):
        CropConfig(buckets=buckets, cache_mb=1)


def test_cached_clips_are_read_once():
    source = Coordinates()
    windows(stream(source), range(30))
    assert sorted(source.read) == list(range(6))


def test_a_cache_forgets_the_clip_not_used_for_longest():
    source = Coordinates([(1, 4, 4)] * 4)
    cache = ClipCache(source, max_bytes=2 * 48)
    assert len(cache) == 4
    for index in (0, 1, 0, 2, 0, 1):
        assert cache[index].source_id == f"clip-{index}"
    assert source.read == [0, 1, 2, 1], "2 drove out 1, since 0 was used after it"
    tiny = ClipCache(source, max_bytes=47)
    for _ in range(2):
        assert tiny[3].source_id == "clip-3"
    assert source.read[4:] == [3, 3], "a clip larger than the cache is not kept"


def test_the_fingerprint_says_what_the_order_depends_on():
    assert stream().fingerprint() == stream(cache_mb=9, process_count=2).fingerprint()
    others = [stream(seed=1), stream(buckets=BUCKETS[:2]), stream(Coordinates(SIZES[:5]))]
    assert all(other.fingerprint() != stream().fingerprint() for other in others)
