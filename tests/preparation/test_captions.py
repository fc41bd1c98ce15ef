"""Captions that changed are written again with the latents that are there; what else changed is refused by name."""

import dataclasses

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.fitting import Collection
from sora_jax.data.shards.files import index_paths
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.preparation.captions import prepare_captions
from tests.preparation.test_encode import LIMITS, SIZES, Codec, Source, run


class Reworded(Source):
    """The clips, of which those in `origins` are told in other words."""

    def __getitem__(self, index):
        clip = super().__getitem__(index)
        said = (f"clip {index} in other words",) if index in self.origins else clip.captions
        return dataclasses.replace(clip, captions=said)


class Killed(Exception):
    pass


class States:
    """A tokenizer that stores arrays, one state a word; it counts the texts that it encodes."""

    stored = True

    def __init__(self):
        self.recipe = {"text_encoder": "states, version 1"}
        self.arrays = {"text_BKE": (2, np.dtype(np.float32))}
        self.encoded = 0

    def count(self, text):
        return 1 + len(text.split())

    def cut(self, text, max_tokens):
        return " ".join(text.split()[: max_tokens - 1])

    def encode(self, texts):
        self.encoded += len(texts)
        return [{"text_BKE": np.full((self.count(text), 2), len(text), np.float32)} for text in texts]


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def again(directory, source, limits=LIMITS, **options):
    collection = Collection(name="main", source=source, limits=limits, readers=2)
    return prepare_captions(collection, directory, clips_per_shard=2, **options)


def records(directory):
    there = PreparedSet(directory)
    return {name: there.raw(number) for number, name in enumerate(there.source_ids())}


def test_only_changed_captions_are_written_and_every_latent_stays(tmp_path):
    limits = dataclasses.replace(LIMITS, tokenizer=States())
    run(tmp_path, Source(bad=[2]), limits=limits)
    before = records(tmp_path)
    assert limits.tokenizer.encoded
    limits.tokenizer.encoded = 0
    source = Reworded(bad=[2])
    source.origins = {2: "second", 5: "second", 7: "second", 21: "second"}
    summary = again(tmp_path, source, limits)
    assert dataclasses.asdict(summary) == {"rewritten": 3, "unchanged": 19, "skipped": 1, "cut_captions": 0}
    assert sorted(source.asked) == [2, 5, 7, 21], "others are not opened"
    assert limits.tokenizer.encoded == 3 + 1, "the empty text, and what changed"
    after = records(tmp_path)
    assert list(after) == list(before)
    for name, sample in after.items():
        np.testing.assert_array_equal(sample.latent_THWC, before[name].latent_THWC)
        changed = int(name.removeprefix("clip")) in source.origins
        assert (sample.captions != before[name].captions) == changed
        for caption, text in zip(sample.captions, sample.texts, strict=True):
            np.testing.assert_array_equal(text["text_BKE"], limits.tokenizer.encode([caption])[0]["text_BKE"])
    assert after["clip005"].captions == ("clip 5 in other words",)


def test_what_was_stopped_goes_on_and_the_set_is_the_old_one_until_then(tmp_path):
    run(tmp_path, Source())
    before, shards = records(tmp_path), len(index_paths(tmp_path))
    source = Reworded()
    source.origins = dict.fromkeys((1, 3, 8, 9), "second")

    def killed(done):
        raise Killed

    with pytest.raises(Killed):
        again(tmp_path, source, progress=killed)
    assert len(index_paths(tmp_path)) == shards + 1
    assert [one.captions for one in records(tmp_path).values()] == [one.captions for one in before.values()]
    assert again(tmp_path, source).rewritten == 2
    changed = {name for name, sample in records(tmp_path).items() if sample.captions != before[name].captions}
    assert changed == {"clip001", "clip003", "clip008", "clip009"}


@pytest.mark.parametrize(
    ("count", "said"),
    [(7, r"2 new \(the first: clip005\); --captions_only"), (3, r"2 gone \(the first: clip003\); --captions_only")],
)
def test_other_clips_are_refused_before_anything_is_written(tmp_path, count, said):
    run(tmp_path, Source(5, bad=[2]))
    before = names(tmp_path)
    source = Reworded(count)
    source.origins = {0: "second"}
    with pytest.raises(UserError, match=r"these are not the 4 clips that .* was prepared from: " + said):
        again(tmp_path, source)
    assert (names(tmp_path), source.asked) == (before, [])
    with pytest.raises(UserError, match=r"holds no prepared data .*: run prepare first"):
        again(tmp_path / "elsewhere", source)


def test_captions_do_not_alter_what_is_told_of_the_clips(tmp_path):
    run(tmp_path, Source(5))
    before = PreparedSet(tmp_path)
    source = Reworded(5)
    source.origins = {0: "second"}
    again(tmp_path, source)
    after = PreparedSet(tmp_path)
    assert after.fingerprint() != before.fingerprint()
    assert after.clips_fingerprint() == before.clips_fingerprint()
    run(tmp_path, Source(6))
    assert PreparedSet(tmp_path).clips_fingerprint() != before.clips_fingerprint()


def test_other_sizes_are_refused_and_the_rest_is_done(tmp_path, monkeypatch):
    run(tmp_path, Source(5))
    source = Reworded(5)
    source.origins = {0: "second", 1: "second"}
    monkeypatch.setattr("tests.preparation.test_encode.SIZES", [SIZES[0], (1, 8, 8), *SIZES[2:]])
    said = (
        r"1 clips have their new captions, but 1 of 5 \(the first: clip001\) are of another size than those that were "
        "prepared: run prepare without --captions_only"
    )
    with pytest.raises(UserError, match=said):
        again(tmp_path, source)
    codec = Codec()
    assert run(tmp_path, source, codec).written == 1
    assert records(tmp_path)["clip000"].captions == ("clip 0 in other words",)


def test_texts_of_another_recipe_are_refused_by_name(tmp_path):
    run(tmp_path, Source(5))
    with pytest.raises(UserError, match=r"the text encoder changed from byte patches .* to states, version 1"):
        again(tmp_path, Reworded(5), dataclasses.replace(LIMITS, tokenizer=States()))
