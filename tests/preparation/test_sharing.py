"""What one run prepared is taken over by another, which then encodes nothing twice."""

import os

import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.fitting import Collection
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.preparation.encode import finish, header, prepare
from sora_jax.preparation.sharing import take_prepared
from tests.preparation.test_encode import LIMITS, Codec, Source

MADE_WITH = header(Codec(), BYTE_TOKENIZER)


def run(directory, source, codec):
    collection = Collection(name="main", source=source, limits=LIMITS, readers=1)
    summary = prepare(collection, codec, directory, batch=4, clips_per_shard=8)
    finish(collection, directory)
    return summary


@pytest.fixture
def prepared(tmp_path):
    run(tmp_path / "first", Source(bad=(5,)), Codec())
    return tmp_path / "first"


def test_nothing_is_encoded_again(prepared, tmp_path):
    assert take_prepared(prepared, tmp_path / "second", MADE_WITH) > 0
    codec, source = Codec(), Source(bad=(5,))
    summary = run(tmp_path / "second", source, codec)
    assert (summary.already_done, summary.written, codec.batches, source.asked) == (23, 0, [], [])
    first, second = PreparedSet(prepared), PreparedSet(tmp_path / "second")
    assert first.fingerprint() == second.fingerprint()
    assert (first.source_ids(), len(second)) == (second.source_ids(), 22)
    (records, *_) = prepared.glob("*.arrayrecord")
    assert os.path.samefile(records, tmp_path / "second" / records.name), "records take no room twice"


def test_clips_that_the_other_run_lacks_are_encoded_and_change_nothing_there(prepared, tmp_path):
    before = {path.name: path.read_bytes() for path in prepared.iterdir()}
    take_prepared(prepared, tmp_path / "second", MADE_WITH)
    summary = run(tmp_path / "second", Source(30, bad=(5, 27)), Codec())
    assert (summary.already_done, summary.written, summary.skipped) == (23, 6, 1)
    assert len(PreparedSet(tmp_path / "second")) == 28
    assert {path.name: path.read_bytes() for path in prepared.iterdir()} == before


def test_an_interrupted_call_is_done_again(prepared, tmp_path):
    total = take_prepared(prepared, tmp_path / "second", MADE_WITH)
    (gone, *_) = (tmp_path / "second").glob("*.index.npz")
    gone.rename(gone.with_name(f"{gone.name}.tmp"))
    assert take_prepared(prepared, tmp_path / "second", MADE_WITH) == 1
    assert take_prepared(prepared, tmp_path / "second", MADE_WITH) == 0
    assert total > 1
    assert run(tmp_path / "second", Source(bad=(5,)), Codec()).written == 0


def test_what_does_not_fit_is_refused(prepared, tmp_path):
    said = "was prepared with something else: the autoencoder changed from a to b: leave stages.prepare.start_from out"
    with pytest.raises(UserError, match=said):
        take_prepared(prepared, tmp_path / "second", header(Codec("b"), BYTE_TOKENIZER))
    (prepared / "catalogue.npz").unlink()
    for folder in (prepared, tmp_path / "none"):
        with pytest.raises(UserError, match=r"start_from: .* holds no clips that were prepared to the end"):
            take_prepared(folder, tmp_path / "second", MADE_WITH)
    assert not (tmp_path / "second").exists()
