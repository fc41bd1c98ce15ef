"""Windows of clips for the autoencoder: cut, never resized, and a function of their number."""

import contextlib
import itertools
import json

import numpy as np
import pytest

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.crops import ClipCache, CropConfig, CropStream

BUCKETS = ((1, 4, 6, 4), (3, 4, 4, 2))


class Source:
    """Clips whose every pixel tells its clip, frame, row and column."""

    def __init__(self, shapes, *, bad=()):
        self.shapes, self.bad, self.opened = shapes, set(bad), []

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, index):
        self.opened.append(index)
        if index in self.bad:
            raise BadClip(self.source_id(index), "it is torn")
        frames, height, width = self.shapes[index]
        t, h, w = np.indices((frames, height, width))
        pixels = np.stack([index * 20 + t, h, w], axis=-1).astype(np.uint8)
        return Clip(pixels_THWC=pixels, fps=8.0, captions=(), source_id=self.source_id(index))

    def source_id(self, index):
        return f"clip{index}"

    def origin(self, index):
        return "drawn"


SHAPES = [(1, 6, 8), (5, 4, 6), (9, 8, 12), (2, 4, 6)]


def stream(*, seed=0, shapes=SHAPES, buckets=BUCKETS, bad=(), altered=0.0, faster=None, **process):
    config = CropConfig(buckets=buckets, cache_mb=1, altered=altered, faster=faster)
    return CropStream(Source(shapes, bad=bad), config, seed=seed, **process)


def test_every_window_is_a_cut_of_one_clip():
    crops, seen = stream(), set()
    for number in range(20):
        frames, height, width, clips = BUCKETS[number % 2]
        batch = crops[number]["clip_BTHWC"]
        assert batch.shape == (clips, frames, height, width, 3)
        assert batch.dtype == np.uint8
        for window in batch:
            index, first = divmod(int(window[0, 0, 0, 0]), 20)
            top, left = window[0, 0, 0, 1:].tolist()
            whole = Source(SHAPES)[index].pixels_THWC
            np.testing.assert_array_equal(
                window, whole[first : first + frames, top : top + height, left : left + width]
            )
            seen.add((index, first, top, left))
    assert {index for index, *_ in seen} == {0, 1, 2, 3}
    for axis in (1, 2, 3):
        assert len({place[axis] for place in seen}) > 2, "windows begin anywhere"


def test_a_batch_is_a_function_of_its_number_and_the_seed():
    np.testing.assert_array_equal(stream()[6]["clip_BTHWC"], stream()[6]["clip_BTHWC"])
    assert not np.array_equal(stream()[6]["clip_BTHWC"], stream(seed=1)[6]["clip_BTHWC"])
    assert not np.array_equal(stream()[6]["clip_BTHWC"], stream()[8]["clip_BTHWC"])


def test_reading_ahead_begins_anywhere_and_gives_the_same():
    crops = stream()
    with contextlib.closing(iter(crops.batches(5))) as batches:
        for number, batch in enumerate(itertools.islice(batches, 4), start=5):
            np.testing.assert_array_equal(batch["clip_BTHWC"], stream()[number]["clip_BTHWC"])


def test_processes_share_a_batch():
    parts = [stream(process_index=index, process_count=2)[3]["clip_BTHWC"] for index in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), stream()[3]["clip_BTHWC"])
    with pytest.raises(UserError, match="holds 4 clips, not divisible by 3 processes"):
        stream(process_count=3)


def test_bad_clips_are_passed_over_and_named_once(caplog):
    crops = stream(bad=[2])
    for number in range(12):
        assert not np.any(crops[number]["clip_BTHWC"][..., 0] // 20 == 2)
    assert [record.getMessage() for record in caplog.records] == ["skipped clip2: it is torn"]


def test_a_window_that_no_clip_holds_ends_the_run():
    said = (
        "a window of 10 frames of 4x4 px, they have up to 9 of 8x12 px: make the buckets smaller or the clips larger$"
    )
    with pytest.raises(DataError, match=said):
        stream(buckets=((10, 4, 4, 1),))[0]
    with pytest.raises(DataError, match=r"or the clips larger, and windows of 1 frame alone where all are images$"):
        stream(shapes=[(1, 6, 8)], buckets=((2, 4, 4, 1),))[0]


@pytest.mark.parametrize("buckets", [(), ((1, 4, 4),), ((0, 4, 4, 1),)])
def test_buckets_that_cannot_be_are_refused(buckets):
    with pytest.raises(UserError, match="buckets must be one or more"):
        CropConfig(buckets=buckets, cache_mb=1, altered=0.0, faster=None)


def test_a_share_of_the_windows_is_altered():
    plain, some = [np.concatenate([s[2 * i]["clip_BTHWC"] for i in range(40)]) for s in (stream(), stream(altered=0.5))]
    kept = np.mean([np.array_equal(a, b) for a, b in zip(plain, some, strict=True)])
    assert 0.4 < kept < 0.6
    for share in (-0.1, 1.5):
        with pytest.raises(UserError, match=f"altered must be a share of the windows, from 0 to 1; not {share}"):
            CropConfig(buckets=BUCKETS, cache_mb=1, altered=share, faster=None)


def test_a_share_of_the_windows_of_clips_long_enough_takes_every_second_frame():
    def strides(crops):
        batches = np.concatenate([crops[2 * i + 1]["clip_BTHWC"] for i in range(40)])
        return np.unique(np.diff(batches[..., 0].astype(int), axis=1)[:, :, 0, 0]).tolist()

    of_nine = [(9, 8, 12)]
    assert strides(stream(shapes=of_nine)) == [1]
    assert strides(stream(shapes=of_nine, faster=0.5)) == [1, 2]
    assert strides(stream(shapes=of_nine, faster=1.0)) == [2]
    assert strides(stream(shapes=[(4, 8, 12)], faster=1.0)) == [1], "five frames are needed"
    np.testing.assert_array_equal(
        stream(faster=1.0)[0]["clip_BTHWC"], stream()[0]["clip_BTHWC"], "an image has one frame"
    )
    with pytest.raises(UserError, match=r"faster must be a share of the windows, from 0 to 1; not 1.5"):
        CropConfig(buckets=BUCKETS, cache_mb=1, altered=0.0, faster=1.5)


def test_the_fingerprint_is_json_and_follows_what_the_order_depends_on():
    first = stream().fingerprint()
    assert json.loads(json.dumps(first)) == first
    others = [
        stream(seed=1),
        stream(buckets=BUCKETS[:1]),
        stream(shapes=SHAPES[:3]),
        stream(altered=0.5),
        stream(faster=0.5),
    ]
    assert all(other.fingerprint() != first for other in others)


def test_the_cache_keeps_the_latest_clips_up_to_its_bytes():
    source = Source([(1, 4, 4)] * 4)
    cache = ClipCache(source, max_bytes=3 * 4 * 4 * 3)
    for index in (0, 1, 2, 0, 3, 0, 2, 1):
        assert cache[index].source_id == f"clip{index}"
    assert source.opened == [0, 1, 2, 3, 1], "1 went when 3 came, for 0 had been used since"
    assert len(cache) == 4


def test_a_clip_larger_than_the_cache_is_still_given():
    cache = ClipCache(Source([(5, 8, 8)]), max_bytes=10)
    assert cache[0].pixels_THWC.shape == cache[0].pixels_THWC.shape == (5, 8, 8, 3)


def test_clips_that_cannot_be_used_are_not_blamed_on_the_buckets():
    everything = stream(bad=range(len(SHAPES)), buckets=((1, 4, 4, 1),))
    with pytest.raises(DataError, match=r"none of 200 clips drawn can be used, such as .*: repair or replace them"):
        everything[0]
    mostly = stream(bad=range(1, len(SHAPES)), buckets=((99, 4, 4, 1),))
    with pytest.raises(DataError, match=r"drawn \(1\d\d of them cannot be used, such as .*\) holds a window of 99 "):
        mostly[0]
