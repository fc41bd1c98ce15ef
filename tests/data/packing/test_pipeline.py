import contextlib
import dataclasses
import json
import pickle
import threading

import grain
import numpy as np
import pytest

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.packing.pipeline import PackingConfig, RowDataset, check_resume
from sora_jax.data.packing.pools import make_pools
from sora_jax.data.shards.prepared import Prepared, PreparedSet, ShardWriter
from sora_jax.data.tokens import BYTE_TOKENIZER, BYTES_PER_TOKEN

HEADER = {
    "autoencoder": "a1",
    "text_encoder": "bytes-1",
    "latent_mean": [0.5, -1.0, 0.0],
    "latent_scale": [2.0, 0.5, 1.0],
    "strides": [4, 8],
    "channels": 3,
}
PATCH = (1, 2, 2)
TIME_RATE = 6.0
PACKING = PackingConfig(tokens=64, text_tokens=40, segments=6, rows=4, window=24)
SAMPLES = 40


def make_sample(number):
    generator = np.random.default_rng(number)
    frames = 1 if number % 2 else int(generator.integers(2, 5))
    shape = (frames, *generator.choice([4, 6, 8], 2).tolist(), 3)
    return Prepared(
        latent_THWC=generator.normal(size=shape).astype(np.float32),
        fps=float(generator.choice([8, 12, 30])),
        captions=(f"clip {number}", f"the considerably longer caption of clip number {number}"),
        source_id=f"clip {number}",
        pixel_shape=(1 + 4 * (frames - 1), 8 * shape[1], 8 * shape[2]),
        trimmed_frames=0,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    with ShardWriter(directory, header=HEADER, tokenizer=BYTE_TOKENIZER, records_per_shard=15) as writer:
        for number in range(SAMPLES):
            writer.add(make_sample(number))
    return PreparedSet(directory)


def make_rows(prepared, *, packing=PACKING, seed=0, mix=None, patch=PATCH, drop=(0.0, 0.0)):
    options = {"patch": patch, "time_rate": TIME_RATE, "tokenizer": BYTE_TOKENIZER, "seed": seed}
    return RowDataset(prepared, packing, **options, mix=mix, token_drop=drop)


def take(rows, count, **kwargs):
    with rows.batches(**kwargs) as batches:
        return [next(batches) for _ in range(count)]


def assert_equal(pack, other):
    assert pack.keys() == other.keys()
    for name in pack:
        assert pack[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(pack[name], other[name], err_msg=name)


def slow_row(rows, prepared, number):
    """The arrays of a row of whole clips, one token at a time."""
    planned = rows.plan.row(number)
    tokens, positions, segments, text = [], [], [], []
    for slot, (index, caption) in enumerate(zip(planned.samples_S, planned.captions_S, strict=True)):
        sample = prepared[int(index)]
        frames, height, width, _ = sample.latent_THWC.shape
        for t in range(frames):
            for h in range(height // 2):
                for w in range(width // 2):
                    block = sample.latent_THWC[t, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
                    tokens.append(block.reshape(-1))
                    positions.append([t * 4 / sample.fps * TIME_RATE, h, w])
                    segments.append(slot + 1)
        for place, token_Q in enumerate(BYTE_TOKENIZER.encode([sample.captions[caption]])[0]["text_BKQ"]):
            text.append((token_Q, slot + 1, place))
    return tokens, positions, segments, text, planned


def test_a_pack_holds_what_a_slow_reference_says(prepared):
    rows = make_rows(prepared)
    (pack,) = take(rows, 1, start_row=8)
    shapes = {name: array.shape for name, array in pack.items()}
    assert shapes == {
        "tokens_BLP": (4, 64, 12),
        "position_BL3": (4, 64, 3),
        "segment_BL": (4, 64),
        "text_BKQ": (4, 40, BYTES_PER_TOKEN),
        "text_segment_BK": (4, 40),
        "text_position_BK": (4, 40),
        "grid_BS3": (4, 6, 3),
        "time_step_BS": (4, 6),
        "sample_BS": (4, 6),
    }
    for b in range(4):
        tokens, positions, segments, text, planned = slow_row(rows, prepared, 8 + b)
        used, text_used, present = len(tokens), len(text), len(planned.samples_S)
        np.testing.assert_array_equal(pack["tokens_BLP"][b, :used], tokens)
        np.testing.assert_allclose(pack["position_BL3"][b, :used], positions, rtol=1e-6)
        np.testing.assert_array_equal(pack["segment_BL"][b, :used], segments)
        np.testing.assert_array_equal(pack["text_BKQ"][b, :text_used], [token for token, _, _ in text])
        np.testing.assert_array_equal(pack["text_segment_BK"][b, :text_used], [slot for _, slot, _ in text])
        np.testing.assert_array_equal(pack["text_position_BK"][b, :text_used], [at for _, _, at in text])
        np.testing.assert_array_equal(pack["sample_BS"][b, :present], planned.samples_S)
        for slot, index in enumerate(planned.samples_S.tolist()):
            t, h, w = prepared.grid_N3[index].tolist()
            assert pack["grid_BS3"][b, slot].tolist() == [t, h // 2, w // 2]
            expected = 4 / prepared.fps_N[index] * TIME_RATE
            assert pack["time_step_BS"][b, slot] == pytest.approx(expected)
        for name, start in [("tokens_BLP", used), ("position_BL3", used), ("segment_BL", used)]:
            assert not pack[name][b, start:].any(), name
        for name in ("text_BKQ", "text_segment_BK", "text_position_BK"):
            assert not pack[name][b, text_used:].any(), name
        for name in ("grid_BS3", "time_step_BS"):
            assert not pack[name][b, present:].any(), name
        assert (pack["sample_BS"][b, present:] == -1).all()


@pytest.mark.parametrize("start", [0, 13])
def test_with_token_drop_a_pack_holds_some_tokens_of_each_clip_where_they_are(prepared, start):
    rows = make_rows(prepared, drop=(0.2, 0.6))
    (pack,) = take(make_rows(prepared, drop=(0.2, 0.6)), 1, start_row=start)
    for b in range(4):
        row = rows[start + b]
        assert_equal({name: array[b] for name, array in pack.items()}, row)
        tokens, positions, segments, text, planned = slow_row(rows, prepared, start + b)
        places = {(slot, *place): i for i, (slot, place) in enumerate(zip(segments, positions, strict=True))}
        used = int(planned.tokens_S.sum())
        assert used < len(tokens)
        np.testing.assert_array_equal(np.bincount(row["segment_BL"][:used])[1:], planned.tokens_S)
        np.testing.assert_array_equal(row["sample_BS"][: len(planned.samples_S)], planned.samples_S)
        step_S, at = row["time_step_BS"], []
        for segment, (time, h, w) in zip(row["segment_BL"][:used], row["position_BL3"][:used], strict=True):
            sample = prepared[int(planned.samples_S[segment - 1])]
            frame = round(float(time / step_S[segment - 1]))
            at.append(places[int(segment), frame * 4 / sample.fps * TIME_RATE, int(h), int(w)])
        assert at == sorted(set(at)), "each at most once, in the order of the clip"
        np.testing.assert_array_equal(row["tokens_BLP"][:used], np.array(tokens)[at])
        assert not row["tokens_BLP"][used:].any()
        assert not row["segment_BL"][used:].any()
        np.testing.assert_array_equal(row["text_segment_BK"][: len(text)], [slot for _, slot, _ in text])


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 6, 61])
def test_processes_hold_the_parts_of_one_global_batch(prepared, processes, start):
    whole = take(make_rows(prepared), 4, start_row=start)
    parts = [
        take(make_rows(prepared), 4, start_row=start, process_index=index, process_count=processes, threads=2)
        for index in range(processes)
    ]
    for step, pack in enumerate(whole):
        joined = {name: np.concatenate([part[step][name] for part in parts]) for name in pack}
        assert_equal(joined, pack)


@pytest.mark.parametrize("start", [0, 4, 6, 13, 60])
def test_batches_from_any_row_are_the_tail_of_the_whole_sequence(prepared, start):
    rows = make_rows(prepared)
    expected = [rows[number] for number in range(start, start + 8)]
    (first, second) = take(make_rows(prepared), 2, start_row=start)
    for b, row in enumerate(expected):
        pack = (first, second)[b // 4]
        assert_equal({name: array[b % 4] for name, array in pack.items()}, row)


def test_a_batch_may_be_one_row(prepared):
    rows = make_rows(prepared, packing=dataclasses.replace(PACKING, rows=1))
    (pack,) = take(rows, 1)
    assert_equal({name: array[0] for name, array in pack.items()}, rows[0])


def test_the_state_is_the_next_row_and_nothing_earlier_is_read(prepared, monkeypatch):
    with make_rows(prepared).batches() as batches:
        packs = [next(batches) for _ in range(5)]
        assert batches.next_row == 20
        following = next(batches)
    read = []
    original = PreparedSet.__getitem__
    monkeypatch.setattr(PreparedSet, "__getitem__", lambda self, i: read.append(i) or original(self, i))
    rows = make_rows(prepared)
    with rows.batches(start_row=20, threads=1) as batches:
        resumed = next(batches)
    assert_equal(resumed, following)
    assert any(not np.array_equal(resumed["sample_BS"], pack["sample_BS"]) for pack in packs)
    ahead = np.concatenate([rows.plan.row(number).samples_S for number in range(20, 40)])
    assert set(read) <= set(ahead.tolist())


@pytest.mark.parametrize("threads", [0, 1, 2, 4])
def test_any_number_of_threads_gives_the_same_batches(prepared, threads):
    rows = make_rows(prepared)
    for number, pack in enumerate(take(make_rows(prepared), 6, start_row=6, threads=threads)):
        for b in range(4):
            assert_equal({name: array[b] for name, array in pack.items()}, rows[6 + 4 * number + b])


def read_by_workers(rows, count, *, start, workers):
    """Reads rows as docs/data.md shows, in worker processes of grain."""
    source = grain.MapDataset.source(rows).slice(slice(start, start + count)).to_iter_dataset()
    return list(source.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))


@pytest.mark.parametrize("workers", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 4))])
def test_worker_processes_give_the_same_rows(prepared, workers):
    rows = make_rows(prepared, drop=(0.0, 0.5))
    found = read_by_workers(rows, 9, start=6, workers=workers)
    assert len(found) == 9
    for number, row in enumerate(found, start=6):
        assert_equal(row, rows[number])


def test_a_pickled_data_set_gives_the_same_rows(prepared):
    rows = make_rows(prepared, drop=(0.0, 0.5))
    expected = rows[17]  # its plan and its readers are now at work
    again = pickle.loads(pickle.dumps(rows))
    assert again.fingerprint() == rows.fingerprint()
    for number in (17, 0, 40):
        assert_equal(again[number], rows[number])
    assert_equal(again[17], expected)


def test_closing_ends_the_threads(prepared):
    before = set(threading.enumerate())
    with contextlib.closing(make_rows(prepared).batches()) as batches:
        next(batches)
        started = set(threading.enumerate()) - before
    assert started
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_fill_is_the_share_of_tokens_in_segments(prepared):
    packs = take(make_rows(prepared), 10)
    for pack in packs:
        assert np.array_equal(pack["segment_BL"] > 0, np.any(pack["tokens_BLP"] != 0, axis=-1))
    assert np.mean([pack["segment_BL"] > 0 for pack in packs]) > 0.9


@pytest.mark.parametrize(("mix", "share"), [({"images": 2.0}, 1.0), ({"videos": 1}, 0.0)])
def test_a_mix_can_leave_a_kind_out(prepared, mix, share):
    pack = take(make_rows(prepared, mix=mix), 1)[0]
    grids = pack["grid_BS3"][pack["sample_BS"] >= 0]
    assert np.mean(grids[:, 0] == 1) == share


def test_a_mix_gives_each_kind_its_share_of_samples(prepared):
    rows = make_rows(prepared, mix={"images": 0.25, "videos": 0.75})
    samples = np.concatenate([rows.plan.row(number).samples_S for number in range(200)])
    assert np.mean(prepared.grid_N3[samples, 0] == 1) == pytest.approx(0.25, abs=0.02)


def test_weights_share_each_kind_out_among_the_collections_that_have_it(prepared):
    images = prepared.grid_N3[:, 0] == 1
    collection_N = np.where(images, np.arange(SAMPLES) % 3 == 0, 0) + 2 * (np.arange(SAMPLES) >= 30)
    mix = {"images": 0.4, "videos": 0.6}
    pools = make_pools(prepared.grid_N3, mix, collection_N=collection_N, weights_G=[3.0, 1.0, 0.0, 4.0])
    seen = {(bool(images[pool.ids_N[0]]), int(collection_N[pool.ids_N[0]])): pool.share for pool in pools}
    assert seen == {
        (True, 0): pytest.approx(0.4 * 3 / 8),
        (True, 1): pytest.approx(0.4 * 1 / 8),
        (True, 3): pytest.approx(0.4 * 4 / 8),
        (False, 0): pytest.approx(0.6),
    }
    for pool in pools:
        assert len(set(collection_N[pool.ids_N])) == len(set(images[pool.ids_N])) == 1
    drawn = np.concatenate([pool.ids_N for pool in pools])
    assert sorted(drawn) == np.flatnonzero(collection_N != 2).tolist()
    with pytest.raises(UserError, match="none of the 20 samples of a kind in the mix is in a collection that has a"):
        make_pools(prepared.grid_N3, {"videos": 1.0}, collection_N=collection_N, weights_G=[0.0, 1.0, 0.0, 0.0])


def test_rows_are_drawn_from_several_directories_by_weight(tmp_path):
    for name, numbers in (("few", range(4)), ("many", range(4, 40))):
        with ShardWriter(tmp_path / name, header=HEADER, tokenizer=BYTE_TOKENIZER) as writer:
            for number in numbers:
                writer.add(make_sample(number))
    prepared = PreparedSet(tmp_path / "few", tmp_path / "many")
    options = {
        "patch": PATCH,
        "time_rate": TIME_RATE,
        "tokenizer": BYTE_TOKENIZER,
        "seed": 0,
        "mix": {"images": 0.5, "videos": 0.5},
    }
    even = RowDataset(prepared, PACKING, weights_G=[1.0, 1.0], **options)
    samples = np.concatenate([even.plan.row(number).samples_S for number in range(200)])
    assert (samples < 4).mean() == pytest.approx(0.5, abs=0.05)
    by_size = RowDataset(prepared, PACKING, **options)
    samples = np.concatenate([by_size.plan.row(number).samples_S for number in range(200)])
    assert (samples < 4).mean() == pytest.approx(0.1, abs=0.04)
    assert even.fingerprint() != by_size.fingerprint()


def test_what_fits_no_row_is_named(prepared):
    narrow = make_rows(prepared, packing=dataclasses.replace(PACKING, tokens=32))
    tokens_N = np.prod(prepared.grid_N3 // PATCH, axis=1)
    assert 0 < np.count_nonzero(tokens_N > 32) < SAMPLES
    left_out = narrow.left_out()
    assert list(left_out) == [f"clip {number}" for number in np.flatnonzero(tokens_N > 32)]
    assert all("32" in reason for reason in left_out.values())
    assert make_rows(prepared).left_out() == {}


def test_a_mix_that_cannot_be_drawn_is_refused(prepared):
    with pytest.raises(UserError, match="'audio'"):
        make_pools(prepared.grid_N3, {"audio": 1.0})
    with pytest.raises(UserError, match=r"videos the weight 0\.0"):
        make_pools(prepared.grid_N3, {"images": 1.0, "videos": 0.0})
    images = prepared.grid_N3[prepared.grid_N3[:, 0] == 1]
    with pytest.raises(UserError, match="0 of 20 prepared samples are videos"):
        make_pools(images, {"videos": 1.0})
    with pytest.raises(UserError, match="empty"):
        make_pools(images, {})


def test_a_patch_that_does_not_divide_a_latent_is_refused(prepared):
    with pytest.raises(UserError, match=r"not divisible by 3"):
        make_rows(prepared, patch=(1, 3, 2))


def test_processes_that_cannot_share_a_batch_are_refused(prepared):
    with pytest.raises(UserError, match="4 rows in a batch cannot be shared by 3 processes"):
        make_rows(prepared).batches(process_count=3)


def test_a_packing_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"packing\.rows must be at least 1, got 0"):
        PackingConfig(tokens=1, text_tokens=1, segments=1, rows=0, window=1)


def test_a_damaged_record_ends_the_batches_with_its_name(tmp_path):
    with ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER) as writer:
        for number in range(4):
            writer.add(make_sample(number))
    path = tmp_path / "data-000000.arrayrecord"
    contents = bytearray(path.read_bytes())
    contents[contents.index(b"clip number 3")] ^= 1
    path.write_bytes(contents)
    with (
        make_rows(PreparedSet(tmp_path)).batches() as batches,
        pytest.raises(DataError, match=r"record 3 of shard .*data-000000\.arrayrecord"),
    ):
        next(batches)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("seed", {"seed": 1}),
        ("mix", {"mix": {"images": 1.0}}),
        ("token_drop", {"drop": (0.0, 0.5)}),
        ("patch", {"patch": (1, 1, 1)}),
        ("tokens", {"packing": PackingConfig(tokens=128, text_tokens=40, segments=6, rows=4, window=24)}),
        ("window", {"packing": PackingConfig(tokens=64, text_tokens=40, segments=6, rows=4, window=25)}),
    ],
)
def test_resume_refuses_a_changed_field_with_old_and_new_value(prepared, field, change):
    saved = json.loads(json.dumps(make_rows(prepared).fingerprint()))
    assert check_resume(saved, make_rows(prepared).fingerprint()) == ""
    changed = make_rows(prepared, **change).fingerprint()
    with pytest.raises(UserError) as refusal:
        check_resume(saved, changed)
    said = f"{field} was {saved[field]!r} and is now {changed[field]!r}"
    assert said in str(refusal.value)
    assert str(refusal.value).count(" was ") == 1
    assert "pass --fresh_data" in str(refusal.value)
    assert check_resume(saved, changed, fresh_data=True) == said


def test_resume_goes_on_where_captions_alone_changed_and_says_so(prepared):
    saved = make_rows(prepared).fingerprint()
    changed, same = saved | {"data": "told anew"}, {saved["data"]: "clips", "told anew": "clips"}
    said = check_resume(saved, changed, reworded=same)
    assert said == f"data, of which captions alone changed, was {saved['data']!r} and is now 'told anew'"
    for known in ({}, {saved["data"]: "clips"}, {**same, "told anew": "other clips"}):
        with pytest.raises(UserError, match="data was "):
            check_resume(saved, changed, reworded=known)
    with pytest.raises(UserError, match="seed was "):
        check_resume(saved, changed | {"seed": 7}, reworded=same)


def test_resume_refuses_another_data_set(prepared, tmp_path):
    with ShardWriter(tmp_path, header=HEADER, tokenizer=BYTE_TOKENIZER) as writer:
        for number in range(SAMPLES - 1):
            writer.add(make_sample(number))
    saved, changed = make_rows(prepared).fingerprint(), make_rows(PreparedSet(tmp_path)).fingerprint()
    with pytest.raises(UserError, match="data was "):
        check_resume(saved, changed)
