"""Preparation: what is written, in which order, what is counted, and that a stop changes nothing."""

import dataclasses
import functools
import hashlib

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from flax import nnx

from sora_jax.core.errors import DataError, UserError
from sora_jax.core.tree import abstract_model
from sora_jax.data.captions import TOKENIZER, count_tokens
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.shard_files import read_skipped
from sora_jax.data.shards import PreparedSet
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sora_jax.models.codec import Codec
from sora_jax.preparation.run import Limits, header, prepare

LONG = "one two three four five six seven eight nine ten"
# (frames, height, width) and captions; None is a clip that cannot be read.
CLIPS = [
    ((5, 8, 8), ("a", "the first clip")),
    ((1, 8, 12), ("b",)),
    (None, ()),
    ((7, 8, 8), ("trimmed",)),
    ((1, 16, 16), ("scaled",)),
    ((5, 8, 8), (LONG, "short")),
    ((1, 2, 8), ("too small",)),
    ((1, 8, 12), ("h",)),
    ((5, 8, 8), ()),
    ((1, 8, 12), ("j",)),
]
GOOD = [0, 1, 3, 4, 5, 7, 8, 9]
LIMITS = Limits(stride=(4, 4, 4), min_tokens=1, max_tokens=12, max_frames=9, max_text_tokens=6, max_bad_share=0.2)


class Memory:
    """A source of noise; `stop_at` is the clip at which somebody pulls the plug."""

    def __init__(self, clips=CLIPS, *, stop_at=None):
        self.clips = clips
        self.stop_at = stop_at
        self.read = []

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        if index == self.stop_at:
            raise KeyboardInterrupt
        self.read.append(index)
        size, captions = self.clips[index]
        if size is None:
            raise BadClip(self.source_id(index), "it cannot be read")
        pixels = np.random.default_rng(index).integers(0, 256, size=(*size, 3), dtype=np.uint8)
        return Clip(pixels_THWC=pixels, fps=8.0 + index, captions=captions, source_id=self.source_id(index))

    def source_id(self, index):
        return f"clip-{index}"

    def fingerprint(self):
        return hashlib.sha256(repr(self.clips).encode()).hexdigest()


@functools.cache
def make_codec(seed=0):
    config = AutoencoderConfig(
        patch=4,
        width=4,
        multipliers=(1, 1, 1),
        space_down=(False, False),
        time_down=(True, True),
        blocks=1,
        decoder_width=4,
        decoder_blocks=1,
        channels=4,
        attention=False,
        shortcuts=True,
    )
    shapes = abstract_model(lambda key: Autoencoder(config, rngs=nnx.Rngs(key)))[1]
    noise = np.random.default_rng(seed)
    params = {name: noise.normal(size=leaf.shape, scale=0.2).astype(np.float32) for name, leaf in shapes.items()}
    return Codec(config, params, mean_C=np.full(4, 0.5), scale_C=np.full(4, 2.0))


def run(directory, *, source=None, limits=LIMITS, clips_per_shard=4, **options):
    source = Memory() if source is None else source
    return prepare(source, make_codec(), directory, limits=limits, batch=2, clips_per_shard=clips_per_shard, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the directory and the summary of a preparation that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(directory)


def records(directory):
    """Returns the bytes of every record by shard."""
    shards = {}
    for path in sorted(directory.glob("*.arrayrecord")):
        reader = ArrayRecordReader(str(path))
        shards[path.name] = [bytes(record) for record in reader.read_all()]
        reader.close()
    return shards


def test_samples_keep_the_order_of_the_source(whole):
    prepared = PreparedSet(whole[0])
    assert [prepared[i].source_id for i in range(len(prepared))] == [f"clip-{i}" for i in GOOD]
    assert [prepared[i].fps for i in range(len(prepared))] == [8.0 + i for i in GOOD]


def test_a_chunk_is_a_shard(whole):
    assert [len(shard) for shard in records(whole[0]).values()] == [3, 3, 2]


def test_latents_are_those_of_each_clip_alone(whole):
    prepared, source, codec = PreparedSet(whole[0]), Memory(), make_codec()
    for number, index in enumerate(GOOD):
        clip = LIMITS.fit(source, index).clip
        expected = (codec.encode(clip.pixels_THWC[None])[0] - 0.5) / 2.0
        assert prepared[number].pixel_shape == clip.pixels_THWC.shape[:3]
        # Stored in bfloat16: 8 bits of the raw latent.
        np.testing.assert_allclose(prepared[number].latent_THWC, expected, rtol=0.01, atol=0.01)


def test_everything_that_was_cut_is_counted(whole):
    directory, summary = whole
    assert dataclasses.asdict(summary) == {
        "written": 8,
        "already_done": 0,
        "skipped": 2,
        "trimmed_frames": 2,
        "scaled_down": 1,
        "cut_captions": 1,
    }
    prepared = PreparedSet(directory)
    assert [prepared[i].trimmed_frames for i in range(8)] == [0, 0, 2, 0, 0, 0, 0, 0]
    assert prepared[3].pixel_shape == (1, 12, 12), "16x16 scaled, since 16 tokens are over 12"


def test_captions_are_cut_at_a_word(whole):
    prepared = PreparedSet(whole[0])
    assert prepared[4].captions == ("one two three four five", "short")
    assert count_tokens(prepared[4].captions[0]) == LIMITS.max_text_tokens
    assert prepared[0].captions == ("a", "the first clip")
    assert prepared[6].captions == ("",)


def test_bad_clips_are_named_with_their_reason(whole):
    skipped = read_skipped(whole[0])
    assert list(skipped) == ["clip-2", "clip-6"]
    assert skipped["clip-2"] == "it cannot be read"
    assert "2x8 pixels" in skipped["clip-6"]


def test_the_header_says_what_the_shards_were_made_with(whole):
    codec, source = make_codec(), Memory()
    made = PreparedSet(whole[0]).header
    assert made == header(codec, source)
    assert made == {
        "autoencoder": codec.fingerprint(),
        "text_encoder": TOKENIZER,
        "source": source.fingerprint(),
        "latent_mean": [0.5] * 4,
        "latent_scale": [2.0] * 4,
        "strides": [4, 4],
        "channels": 4,
    }


@pytest.mark.parametrize("change", ["autoencoder", "source"])
def test_another_autoencoder_or_source_is_refused(tmp_path, change):
    run(tmp_path)
    codec = make_codec(1) if change == "autoencoder" else make_codec()
    source = Memory(CLIPS[:-1]) if change == "source" else Memory()
    with pytest.raises(UserError, match=f"the {change} changed from"):
        prepare(source, codec, tmp_path, limits=LIMITS, batch=2, clips_per_shard=4)


@pytest.mark.parametrize("stop_at", [0, 3, 4, 5, 7, 8, 9])
def test_an_interrupted_preparation_ends_with_the_very_same_records(tmp_path, whole, stop_at):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, source=Memory(stop_at=stop_at))
    assert len(records(tmp_path)) == stop_at // 4
    again = Memory()
    summary = run(tmp_path, source=again)
    assert records(tmp_path) == records(whole[0])
    assert read_skipped(tmp_path) == read_skipped(whole[0])
    # Bad clips of the chunk that was stopped are known already and not read again.
    todo = [index for index in range(stop_at // 4 * 4, 10) if not (index in (2, 6) and index < stop_at)]
    assert again.read == todo
    assert summary.already_done == 10 - len(todo)
    assert PreparedSet(tmp_path).fingerprint() == PreparedSet(whole[0]).fingerprint()


def test_a_stop_between_chunks_loses_nothing(tmp_path, whole):
    """Asked to stop after each chunk, as on a machine that is taken away again and again."""

    def stop(done):
        if done >= min(4 * finished, 10):
            raise KeyboardInterrupt

    for finished in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, progress=stop)
        assert len(records(tmp_path)) == finished
    assert records(tmp_path) == records(whole[0])


def test_a_second_run_reads_and_writes_nothing(tmp_path, whole):
    run(tmp_path)
    again = Memory()
    summary = run(tmp_path, source=again)
    assert again.read == []
    assert summary.already_done == 10
    assert summary.written == summary.skipped == 0
    assert records(tmp_path) == records(whole[0])


def test_progress_counts_clips(tmp_path):
    seen = []
    run(tmp_path, progress=seen.append)
    assert seen == [4, 8, 10]


def test_too_many_bad_clips_are_an_error_also_on_the_second_try(tmp_path):
    strict = dataclasses.replace(LIMITS, max_bad_share=0.19)
    for _ in range(2):
        with pytest.raises(DataError, match=r"2 of 10 clips could not be used, more than the share of 0\.19"):
            run(tmp_path, limits=strict)
    assert len(PreparedSet(tmp_path)) == 8, "what could be used is there"
    run(tmp_path, limits=LIMITS)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_chunks(tmp_path, whole, processes):
    for index in range(processes):
        run(tmp_path, process_index=index, process_count=processes)
    shards = records(tmp_path)
    # Chunks are dealt in turn: chunk c is the shard c // processes of process c % processes.
    names = [f"part{c % processes:03d}of{processes:03d}-{c // processes:06d}.arrayrecord" for c in range(3)]
    assert [shards[name] for name in names] == list(records(whole[0]).values())
    assert len(shards) == 3


def test_a_batch_is_filled_up_without_a_trace(tmp_path, whole):
    """Three clips of one size in batches of two: the copy that fills the second is not written."""
    source = Memory([((1, 8, 8), ("x",))] * 3)
    assert run(tmp_path, source=source).written == 3
    assert [PreparedSet(tmp_path)[i].source_id for i in range(3)] == ["clip-0", "clip-1", "clip-2"]
    assert len(PreparedSet(tmp_path)) == 3
