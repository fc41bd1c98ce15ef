"""Preparation: every clip once, in order, whatever interrupts; what is left out is named and counted."""

import dataclasses
import json
import os
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.fitting import ClipBudget, Collection
from sora_jax.data.shards.files import index_paths, read_index
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.sources.base import FolderSource
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.preparation.encode import Share, finish, header, prepare

SIZES = [(1, 8, 8), (5, 8, 12), (1, 8, 8), (6, 16, 8), (1, 24, 24)]


class Codec:
    """Encodes to the mean of each 4 x 4 block of every fourth frame; counts what it is given."""

    stride = (4, 4, 4)
    config = types.SimpleNamespace(channels=3)
    mean_C, scale_C = np.zeros(3), np.ones(3)

    def __init__(self, name="a"):
        self.name, self.batches = name, []

    def encode(self, pixels_BTHWC):
        self.batches.append(pixels_BTHWC.shape)
        batch, _, height, width, _ = pixels_BTHWC.shape
        blocks = pixels_BTHWC[:, ::4].reshape(batch, -1, height // 4, 4, width // 4, 4, 3)
        return blocks.mean(axis=(3, 5)).astype(np.float32)

    def fingerprint(self):
        return self.name


class Source:
    """`count` clips of mixed sizes; those in `bad` do not decode; `asked` remembers what was opened."""

    def __init__(self, count=23, *, bad=()):
        self.count, self.bad, self.asked = count, set(bad), []
        self.origins = {}

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.asked.append(index)
        if index in self.bad:
            raise BadClip(self.source_id(index), "it is torn")
        shape = SIZES[index % len(SIZES)]
        pixels = np.random.default_rng(index).integers(0, 256, size=(*shape, 3), dtype=np.uint8)
        captions = () if index == 4 else ("a red circle " * (1 + index), "short")
        return Clip(pixels_THWC=pixels, fps=8.0, captions=captions, source_id=self.source_id(index))

    def source_id(self, index):
        return f"clip{index:03d}"

    def origin(self, index):
        return self.origins.get(index, "first")


LIMITS = ClipBudget(
    stride=(4, 4, 4),
    min_tokens=1,
    max_tokens=24,
    max_frames=None,
    tokenizer=BYTE_TOKENIZER,
    max_text_tokens=10,
    max_bad_share=0.5,
)


def run(directory, source=None, codec=None, limits=LIMITS, **options):
    """Prepares and, unless it is but a share, makes the set."""
    options = {"batch": 3, "clips_per_shard": 10} | options
    collection = Collection(name="main", source=source or Source(), limits=limits, readers=2)
    summary = prepare(collection, codec or Codec(), directory, **options)
    if "share" not in options:
        finish(collection, directory)
    return summary


def names(directory):
    prepared = PreparedSet(directory)
    return [prepared[index].source_id for index in range(len(prepared))]


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(directory, Source(bad=[2, 12]))


def test_samples_come_in_the_order_of_the_source(whole):
    assert names(whole[0]) == [f"clip{index:03d}" for index in range(23) if index not in (2, 12)]


def test_each_latent_is_that_of_its_clip_as_fitted(whole):
    prepared, source, codec = PreparedSet(whole[0]), Source(), Codec()
    for number in range(len(prepared)):
        sample = prepared[number]
        fitted = LIMITS.fit(source, int(sample.source_id[4:]))
        expected = codec.encode(fitted.clip.pixels_THWC[None])[0]
        np.testing.assert_allclose(sample.latent_THWC, expected, rtol=2**-8)  # stored as bfloat16
        assert sample.pixel_shape == fitted.clip.pixels_THWC.shape[:3]
        assert sample.trimmed_frames == fitted.trimmed_frames
        assert sample.fps == 8.0


def test_captions_are_cut_to_whole_words_and_a_missing_one_is_empty(whole):
    prepared = PreparedSet(whole[0])
    samples = {prepared[i].source_id: prepared[i] for i in range(len(prepared))}
    assert samples["clip000"].captions == ("a red circle", "short")
    assert samples["clip009"].captions == ("a red circle a red circle a red circle", "short")
    assert samples["clip004"].captions == ("",)
    assert max(BYTE_TOKENIZER.count(c) for sample in samples.values() for c in sample.captions) == 10


def test_weights_of_captions_come_with_them(tmp_path):
    class Weighted(Source):
        def __getitem__(self, index):
            return dataclasses.replace(super().__getitem__(index), weights=(1.0 + index, 0.5))

    run(tmp_path, Weighted(3))
    assert PreparedSet(tmp_path).weights_M.tolist() == [1.0, 0.5, 2.0, 0.5, 3.0, 0.5]


def test_frames_that_are_left_in_files_are_counted_and_noted(tmp_path):
    class Long(Source):
        def __getitem__(self, index):
            return dataclasses.replace(super().__getitem__(index), file_frames=None if index == 1 else 100)

    summary = run(tmp_path, Long(3))
    (index,) = map(read_index, index_paths(tmp_path))
    assert index["file_frames_N"].tolist() == [100, 0, 100]
    frames = [Source(3)[number].pixels_THWC.shape[0] for number in range(3)]
    kept = [1 + (count - 1) // 4 * 4 for count in frames]
    assert (summary.frames_encoded, summary.frames_left_in_files) == (sum(kept), 200 - kept[0] - kept[2])


def test_what_was_done_is_counted(whole):
    summary = whole[1]
    assert (summary.written, summary.already_done, summary.skipped) == (21, 0, 2)
    assert summary.trimmed_frames == 4, "one of each clip of 6 frames"
    assert summary.scaled_down == 4, "24 x 24 px are 36 tokens"
    assert summary.cropped_over_2_percent == 0, "all sides are on the stride"
    assert summary.cut_captions == sum(1 + 3 * (1 + i) > 10 for i in range(23) if i not in (2, 4, 12))


def test_bad_clips_are_named_with_their_reason(whole):
    lines = [json.loads(line) for line in (whole[0] / "skipped.jsonl").read_text().splitlines()]
    names = [f"clip{index:03d}" for index in (2, 12)]
    assert lines == [{"source_id": name, "origin": "first", "reason": "it is torn"} for name in names]


def test_clips_of_one_size_are_encoded_together_in_few_sizes_of_batch(tmp_path):
    codec = Codec()
    run(tmp_path, codec=codec, clips_per_shard=23)
    by_size = {}
    for batch, *size in codec.batches:
        by_size.setdefault(tuple(size), []).append(batch)
    assert all(len(set(batches)) == 1 and batches[0] <= 3 for batches in by_size.values()), by_size


@pytest.mark.parametrize("stop_after", [10, 20])
def test_stopped_between_chunks_it_goes_on_and_leaves_the_same_bytes(whole, tmp_path, stop_after):
    def stop(done):
        if done == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Source(bad=[2, 12]), progress=stop)
    source, seen = Source(bad=[2, 12]), []
    summary = run(tmp_path, source, progress=seen.append)
    assert sorted(source.asked) == list(range(stop_after, 23)), "what is done is not opened again"
    assert seen == [done for done in (10, 20, 23) if done > stop_after]
    assert summary.written == sum(index not in (2, 12) for index in range(stop_after, 23))
    assert contents(tmp_path) == contents(whole[0])


def test_killed_inside_a_chunk_it_leaves_the_same_samples(whole, tmp_path):
    class Torn(Codec):
        def encode(self, pixels_BTHWC):
            if len(self.batches) == 5:
                raise MemoryError
            return super().encode(pixels_BTHWC)

    with pytest.raises(MemoryError):
        run(tmp_path, Source(bad=[2, 12]), Torn())
    assert not any("tmp" in name for name in contents(tmp_path))
    run(tmp_path, Source(bad=[2, 12]))
    assert PreparedSet(tmp_path).fingerprint() == PreparedSet(whole[0]).fingerprint()
    assert (tmp_path / "skipped.jsonl").read_text() == (whole[0] / "skipped.jsonl").read_text()


def test_done_it_does_nothing_more(whole):
    before, source = contents(whole[0]), Source(bad=[2, 12])
    summary = run(whole[0], source)
    assert summary.written == 0
    assert source.asked == []
    assert contents(whole[0]) == before


def test_processes_share_the_chunks(whole, tmp_path):
    source = Source(bad=[2, 12])
    collection = Collection(name="main", source=source, limits=LIMITS)
    for index, written in ((1, 10), (0, 11)):
        if index == 0:
            with pytest.raises(DataError, match=r"13 of 23 clips are not prepared yet \(the first: clip000\)"):
                finish(collection, tmp_path)
        summary = run(tmp_path, source, share=Share(index=index, count=2), clips_per_shard=5)
        assert summary.written == written
    assert run(tmp_path, source).written == 0, "what is left is to make them one set"
    assert names(tmp_path) == names(whole[0])
    assert PreparedSet(tmp_path).fingerprint() == PreparedSet(whole[0]).fingerprint()
    assert (tmp_path / "skipped.jsonl").read_text() == (whole[0] / "skipped.jsonl").read_text()


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 3)])
def test_a_share_is_one_of_those_there_are(index, count):
    with pytest.raises(UserError, match=f"process_index {index} must be 0 or more and less than process_count {count}"):
        Share(index=index, count=count)


def test_of_a_heap_that_grew_only_what_is_new_is_encoded(whole, tmp_path):
    run(tmp_path, Source(17, bad=[2, 3, 12]))
    source = Source(bad=[2, 12])
    source.origins = {index: "second" for index in (3, 5)}  # one was torn and is whole now, one is another clip
    summary = run(tmp_path, source)
    assert sorted(source.asked) == [3, 5, *range(17, 23)]
    assert (summary.written, summary.already_done) == (8, 15)
    assert names(tmp_path) == names(whole[0])
    assert [json.loads(line)["source_id"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()] == [
        "clip002",
        "clip012",
    ]


@pytest.mark.parametrize(("bad", "share", "fails"), [(3, 0.1, True), (2, 0.1, False), (0, 0.0, False), (1, 0.0, True)])
def test_too_many_bad_clips_end_the_run_with_both_numbers(tmp_path, bad, share, fails):
    limits = ClipBudget(**{**vars(LIMITS), "max_bad_share": share})
    for _ in range(2):  # the second time too: what is known to be bad is still bad
        if fails:
            with pytest.raises(
                DataError, match=rf"{bad} of 23 clips could not be used, .* share of {share:g} .*skipped"
            ):
                run(tmp_path, Source(bad=range(bad)), limits=limits)
        else:
            run(tmp_path, Source(bad=range(bad)), limits=limits)


def test_clips_that_do_not_fit_are_skipped_too(tmp_path):
    limits = ClipBudget(**{**vars(LIMITS), "min_tokens": 6, "max_bad_share": 1.0})
    run(tmp_path, limits=limits)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert len(reasons) == 10
    assert all("give 4 tokens, under min_tokens = 6" in reason for reason in reasons)


def test_shards_of_another_autoencoder_are_refused(whole):
    with pytest.raises(UserError, match="autoencoder"):
        run(whole[0], codec=Codec("b"))


def test_the_header_says_what_the_shards_were_made_with():
    made = header(Codec(), BYTE_TOKENIZER)
    assert made["autoencoder"] == "a"
    assert made["strides"] == [4, 4]
    assert json.loads(json.dumps(made)) == made


CLIPS = Path(os.environ.get("SORA_JAX_CLIPS", "/nonexistent"))
GOOD = (
    *("bbb_rabbit_1s.webm", "gen_anime_girl_blossoms.mp4", "gen_cartoon_dog_candle.mp4", "gen_cyclist_sunset.gif"),
    *("sign_bird.mkv", "sign_eat.mkv", "snowstorm_traveller_fade.mp4"),
)
# PyAV decodes these: the first two to ruined or missing pictures; the others are smaller than a token.
REFUSED_TOO = {"bitflips.mp4", "truncated_50pct.mkv", "one_pixel_1x1.mp4", "rgb_2x2.mp4"}


@pytest.fixture(scope="module")
def heap(tmp_path_factory) -> tuple[Path, set[str]]:
    """Returns a folder of all damaged and some good clips with captions, and the names of those that are of no use."""
    folder = tmp_path_factory.mktemp("heap")
    rows = [json.loads(line) for line in (CLIPS / "damaged" / "expected.jsonl").read_text().splitlines()]
    places = {row["file"]: CLIPS / "damaged" for row in rows} | dict.fromkeys(GOOD, CLIPS / "real")
    for name, place in places.items():
        shutil.copyfile(place / name, folder / name)
    captions = [json.dumps({"file": name, "caption": f"the clip {name}"}) for name in places]
    (folder / "captions.jsonl").write_text("\n".join(captions))
    return folder, {row["file"] for row in rows if not row["decodes"]} | REFUSED_TOO


@pytest.mark.skipif(not CLIPS.is_dir(), reason="SORA_JAX_CLIPS names no folder of real and damaged clips")
def test_damaged_clips_beside_good_ones_are_skipped_and_named_the_same_each_time(heap, tmp_path):
    folder, useless = heap
    lenient = dataclasses.replace(LIMITS, max_bad_share=1.0)
    for directory in (tmp_path / "one", tmp_path / "two"):
        source = FolderSource(folder)
        summary = run(directory, source, limits=lenient)
        assert len(source) == 39 + len(GOOD)
        assert summary.written + summary.skipped == len(source)
    lines = [json.loads(line) for line in (tmp_path / "one" / "skipped.jsonl").read_text().splitlines()]
    assert {line["source_id"] for line in lines} == useless
    assert len(lines) == len(useless)
    assert all(line["reason"] for line in lines)
    every = {source.source_id(index) for index in range(len(source))}
    assert set(names(tmp_path / "one")) == every - useless
    assert useless.isdisjoint(GOOD)
    assert contents(tmp_path / "one") == contents(tmp_path / "two"), "skipped.jsonl with its reasons included"
    with pytest.raises(DataError, match=rf"{len(useless)} of {len(source)} clips could not be used") as caught:
        run(tmp_path / "two", source, limits=dataclasses.replace(LIMITS, max_bad_share=0.2))
    assert caught.value.exit_code == 66
