"""Streaming packs: grain's first fit gives rows as `packs.Row` fills them, and resumes exactly."""

import collections
import json
import logging

import grain
import numpy as np
import pytest

from sora_jax.data.captions import count_tokens, tokenize
from sora_jax.data.packing import Budget
from sora_jax.data.packs import PackLayout
from sora_jax.data.shards import Prepared
from sora_jax.data.streaming import pack_stream
from sora_jax.video import shapes
from sora_jax.video.patches import patchify

PATCH = (1, 2, 2)
SAMPLES = 90


def make_layout(*, tokens=40, text_tokens=30, segments=5):
    budget = Budget(tokens=tokens, text_tokens=text_tokens, segments=segments)
    return PackLayout(budget=budget, patch=PATCH, channels=3, temporal_stride=4, time_rate=6.0)


def make_sample(number, captions=("a {} short", "the considerably longer caption of clip number {}"), weights=None):
    generator = np.random.default_rng(number)
    shape = (int(generator.integers(1, 5)), *(2 * generator.integers(1, 4, 2)).tolist(), 3)
    return Prepared(
        latent_THWC=generator.normal(size=shape).astype(np.float32),
        fps=float(generator.choice([8, 12, 30])),
        captions=tuple(caption.format(number) for caption in captions),
        source_id=f"clip {number}",
        pixel_shape=(1 + 4 * (shape[0] - 1), 8 * shape[1], 8 * shape[2]),
        trimmed_frames=0,
        weights=weights,
    )


class Samples:
    """A grain source of as many samples as asked for."""

    def __init__(self, count=SAMPLES, **kwargs):
        self._count, self._kwargs = count, kwargs

    def __len__(self):
        return self._count

    def __getitem__(self, number):
        return make_sample(number, **self._kwargs)


def stream(source=None, layout=None, *, rows=2, seed=0, open_rows=4):
    samples = grain.MapDataset.source(source or Samples()).to_iter_dataset()
    return pack_stream(samples, layout or make_layout(), rows=rows, seed=seed, open_rows=open_rows)


def rows_of(packs):
    return [{name: array[b] for name, array in pack.items()} for pack in packs for b in range(len(pack["sample_BS"]))]


def assert_equal(row, other):
    assert row.keys() == other.keys()
    for name in row:
        assert row[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(row[name], other[name], err_msg=name)


def filled_again(row, layout):
    """The row that `packs.Row` makes of the same samples, their captions read off the text tokens."""
    again = layout.row()
    for slot, number in enumerate(row["sample_BS"][row["sample_BS"] >= 0].tolist()):
        sample = make_sample(number)
        text_KQ = row["text_BKQ"][row["text_segment_BK"] == slot + 1]
        (caption,) = [c for c in sample.captions if np.array_equal(tokenize(c, max_tokens=99), text_KQ)]
        t, h, w, _ = sample.latent_THWC.shape
        again.put(
            sample=number,
            grid=shapes.token_grid((t, h, w), PATCH),
            fps=sample.fps,
            caption=caption,
            tokens_LP=patchify(sample.latent_THWC, PATCH),
        )
    return again.arrays


@pytest.mark.parametrize(
    "layout",
    [make_layout(), make_layout(text_tokens=13), make_layout(segments=1), make_layout(tokens=400, segments=3)],
)
def test_each_sample_is_whole_in_one_row_as_a_row_is_filled(layout):
    rows = rows_of(stream(layout=layout))
    for row in rows:
        assert_equal(row, filled_again(row, layout))  # which also finds a capacity that is exceeded
    counts = collections.Counter(np.concatenate([row["sample_BS"] for row in rows]).tolist())
    del counts[-1]
    assert counts == dict.fromkeys(range(SAMPLES), 1)


def test_packs_have_so_many_rows_and_the_last_what_is_left():
    packs = list(stream(rows=4))
    assert {len(pack["segment_BL"]) for pack in packs[:-1]} == {4}
    assert 1 <= len(packs[-1]["segment_BL"]) <= 4
    assert packs[0]["tokens_BLP"].shape == (4, 40, 12)
    assert np.mean([pack["segment_BL"] > 0 for pack in packs[:-1]]) > 0.8


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 7])
def test_a_resumed_stream_is_the_uninterrupted_one(stop):
    whole = list(stream())
    iterator = iter(stream())
    for _ in range(stop):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    again = iter(stream())
    again.set_state(state)
    rest = list(again)
    assert len(rest) == len(whole) - stop
    for pack, expected in zip(rest, whole[stop:], strict=True):
        assert_equal(pack, expected)


def test_captions_that_fit_are_drawn_by_weight_and_by_seed():
    source = Samples(600, captions=("a b", "one two three four " * 9, "c d e"), weights=(1.0, 50.0, 3.0))
    layout = make_layout(tokens=400, segments=40, text_tokens=35)

    def lengths(seed):
        rows = rows_of(stream(source, layout, seed=seed))
        return {
            number: int((row["text_segment_BK"] == slot + 1).sum())
            for row in rows
            for slot, number in enumerate(row["sample_BS"][row["sample_BS"] >= 0].tolist())
        }

    drawn = lengths(0)
    assert set(drawn.values()) == {count_tokens("a b"), count_tokens("c d e")}
    assert np.mean([length == count_tokens("a b") for length in drawn.values()]) == pytest.approx(0.25, abs=0.05)
    assert lengths(0) == drawn
    assert lengths(1) != drawn


def test_what_fits_no_row_is_left_out_and_named(caplog):
    with caplog.at_level(logging.WARNING):
        rows = rows_of(stream(layout=make_layout(tokens=20)))
    tokens = [shapes.count(shapes.token_grid(make_sample(n).latent_THWC.shape[:3], PATCH)) for n in range(SAMPLES)]
    unfit = {number for number in range(SAMPLES) if tokens[number] > 20}
    found = set(np.concatenate([row["sample_BS"] for row in rows]).tolist()) - {-1}
    assert found == set(range(SAMPLES)) - unfit
    for number in unfit:
        assert f"clip {number} is left out: {tokens[number]} tokens do not fit a row of 20 tokens" in caplog.text


def test_a_sample_without_captions_has_the_empty_one():
    (pack,) = stream(Samples(1, captions=()), rows=1)
    assert pack["text_segment_BK"].sum() == 1
    assert not pack["text_BKQ"].any()
