"""The catalogue: what is trained on depends on the source alone, however its records came to be."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.core.errors import DataError
from sora_jax.data.shards.catalogue import read_catalogue, read_spellings, read_words, write_catalogue
from sora_jax.data.shards.files import index_paths, read_index
from sora_jax.data.shards.prepared import Prepared, PreparedSet, ShardWriter
from sora_jax.data.sources.base import fingerprint
from sora_jax.data.tokens import BYTE_TOKENIZER

HEADER = {
    "autoencoder": "a1",
    "text_encoder": "bytes-1",
    "latent_mean": [0.0],
    "latent_scale": [1.0],
    "strides": [4, 8],
    "channels": 1,
}


class Names:
    """A source of which only names and origins are asked."""

    def __init__(self, *clips):
        self.clips = clips

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        raise AssertionError("a catalogue opens no clip")

    def source_id(self, index):
        return self.clips[index][0]

    def origin(self, index):
        return self.clips[index][1]


def sample(name, origin):
    """A sample whose latent says what it was made from, with as many captions."""
    number = sum(map(ord, name + origin))
    return Prepared(
        latent_THWC=np.full((1, 1 + number % 3, 2, 1), number, np.float32),
        fps=8.0,
        captions=tuple(f"caption {i} of {name}" for i in range(1 + number % 3)),
        source_id=name,
        pixel_shape=(1, 8, 8),
        trimmed_frames=0,
        origin=origin,
    )


def write(directory, clips, *, name="data", shard=2):
    with ShardWriter(directory, header=HEADER, tokenizer=BYTE_TOKENIZER, name=name, records_per_shard=shard) as writer:
        for clip in clips:
            writer.add(sample(*clip))


def contents(prepared):
    samples = [prepared[number] for number in range(len(prepared))]
    return [(one.source_id, one.origin, one.captions, one.latent_THWC.tolist()) for one in samples]


def test_samples_come_in_the_order_of_the_source_whoever_wrote_them(tmp_path):
    clips = [(f"clip{number}", "x") for number in range(7)]
    write(tmp_path / "alone", clips, shard=3)
    write(tmp_path / "shared", clips[4:6] + clips[:1], name="part1")
    write(tmp_path / "shared", clips[1:4] + clips[6:], name="part0")
    for name in ("alone", "shared"):
        assert write_catalogue(tmp_path / name, Names(*clips)) == {}
    alone, shared = PreparedSet(tmp_path / "alone"), PreparedSet(tmp_path / "shared")
    assert contents(alone) == contents(shared)
    assert [clip[0] for clip in contents(shared)] == [name for name, _ in clips]
    assert alone.fingerprint() == shared.fingerprint()
    assert alone.text_lengths == shared.text_lengths


def test_of_a_heap_that_changed_only_what_is_there_now_counts(tmp_path):
    write(tmp_path, [("a", "x"), ("b", "x"), ("c", "x")])
    with ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER) as writer:
        writer.skip(("d", "x"), "it is torn")
        writer.skip(("e", "x"), "it is too short")
    write(tmp_path, [("b", "y"), ("d", "y")])
    source = Names(("b", "y"), ("d", "y"), ("a", "x"), ("e", "x"))
    assert write_catalogue(tmp_path, source) == {"e": "it is too short"}
    assert [clip[:2] for clip in contents(PreparedSet(tmp_path))] == [("b", "y"), ("d", "y"), ("a", "x")]
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert lines == [{"source_id": "e", "origin": "x", "reason": "it is too short"}]
    back = Names(("a", "x"), ("b", "x"), ("c", "x"))
    write_catalogue(tmp_path, back)
    assert [clip[:2] for clip in contents(PreparedSet(tmp_path))] == [("a", "x"), ("b", "x"), ("c", "x")]
    catalogue = read_catalogue(tmp_path)
    assert catalogue is not None
    assert catalogue.source == fingerprint(back)


def test_words_that_were_replaced_are_gone_with_their_shard(tmp_path):
    write(tmp_path, [("a", "x"), ("b", "x")])
    with ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER) as writer:
        for clip in (("b", "y"), ("a", "y")):
            writer.add(dataclasses.replace(sample(*clip), captions=("told anew",), file_frames=9))
    assert read_words(tmp_path) > {"told", "anew"}, "no preparation has ended"
    write_catalogue(tmp_path, Names(("a", "y"), ("b", "y")))
    assert read_words(tmp_path) == read_spellings(tmp_path) == {"told", "anew"}
    assert PreparedSet(tmp_path).file_frames_N.tolist() == [9, 9]


def test_what_an_index_notes_of_all_its_clips_is_of_none_of_them(tmp_path):
    """More clips than the words of their captions have letters, as in the drawn world."""
    clips = [(f"clip{number}", "x") for number in range(40)]
    with ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER, records_per_shard=20) as writer:
        for clip in clips:
            writer.add(dataclasses.replace(sample(*clip), captions=("a",)))
    write_catalogue(tmp_path, Names(*reversed(clips)))
    assert read_words(tmp_path) == read_spellings(tmp_path) == {"a"}
    assert [clip[0] for clip in contents(PreparedSet(tmp_path))] == [name for name, _ in reversed(clips)]


@pytest.mark.parametrize("older", [0, 1])
def test_shards_that_noted_less_are_read_with_others(tmp_path, older):
    clips = [(f"clip{number}", "x") for number in range(4)]
    write(tmp_path, clips)
    expected = contents(PreparedSet(tmp_path))
    path = index_paths(tmp_path)[older]
    kept = {name: array for name, array in read_index(path).items() if name not in ("spellings", "file_frames_N")}
    np.savez(path, **kept)
    assert contents(PreparedSet(tmp_path)) == expected
    assert PreparedSet(tmp_path).file_frames_N is None
    assert read_words(tmp_path) is not None
    assert read_spellings(tmp_path) is None


def test_clips_that_no_process_prepared_are_missed(tmp_path):
    write(tmp_path, [("a", "x")])
    with pytest.raises(DataError, match=r"2 of 3 clips are not prepared yet \(the first: b\)"):
        write_catalogue(tmp_path, Names(("a", "x"), ("b", "x"), ("a", "y")))
    assert read_catalogue(tmp_path) is None


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nothing"])
def test_a_damaged_catalogue_is_named(tmp_path, damage):
    write(tmp_path, [("a", "x")])
    write_catalogue(tmp_path, Names(("a", "x")))
    (tmp_path / "catalogue.npz").write_bytes(damage)
    with pytest.raises(DataError, match=r"catalogue\.npz is damaged .*: remove it and run prepare"):
        PreparedSet(tmp_path)


@settings(max_examples=25)
@given(st.permutations(range(9)), st.integers(1, 9), st.integers(1, 4))
def test_any_part_in_any_order_is_found(tmp_path_factory, order, count, shard):
    directory = tmp_path_factory.mktemp("shards")
    clips = [(f"clip{number}", "x") for number in order]
    write(directory, sorted(clips), shard=shard)
    write_catalogue(directory, Names(*clips[:count]))
    prepared = PreparedSet(directory)
    names = [prepared[number].source_id for number in range(len(prepared))]
    assert names == [name for name, _ in clips[:count]]
    for number, clip in enumerate(clips[:count]):
        expected = sample(*clip)
        assert prepared[number].captions == expected.captions
        assert tuple(prepared.grid_N3[number]) == expected.latent_THWC.shape[:3]
        assert len(prepared.text_lengths[number]) == len(expected.captions)
