"""Clips beside: made of whole tokens, kept in shards with what was drawn, put in the coordinates of what is made."""

import dataclasses

import numpy as np
import pytest

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.clips import Clip
from sora_jax.data.packing.context import ContextMix
from sora_jax.data.packing.pipeline import PackingConfig, RowDataset
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.preparation.context import Control, made_beside
from sora_jax.preparation.controls import CONTROLS
from sora_jax.video.parts import ROLES, ContextClip
from tests.preparation.test_encode import Source, run

STRIDE = (4, 8, 8)


def clip(frames=5, height=24, width=24):
    pixels = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return Clip(pixels_THWC=pixels, fps=8.0, captions=("a",), source_id="one")


def slow(given, generator):
    return dataclasses.replace(given, pixels_THWC=given.pixels_THWC[::2], fps=given.fps / 2), {
        "chance": generator.random()
    }


def test_what_is_no_multiple_is_continued_and_draws_depend_on_names_alone():
    made, scale, _ = made_beside(clip(), "grey", CONTROLS["grey"], STRIDE) or pytest.fail("it has one")
    assert made.pixels_THWC.shape == (5, 16, 16, 3)
    assert scale == 2
    np.testing.assert_array_equal(made.pixels_THWC[:, 12:], made.pixels_THWC[:, 12:13].repeat(4, axis=1))
    control = Control(make=slow, role="low", scale=1, recipe="every second frame")
    made, scale, drawn = made_beside(clip(), "low", control, STRIDE) or pytest.fail("it has one")
    assert (made.pixels_THWC.shape[0], made.fps, scale) == (5, 4.0, 1)
    again = made_beside(clip(), "low", control, STRIDE) or pytest.fail("it has one")
    assert drawn == again[2]


def test_a_control_of_a_size_that_is_no_whole_part_is_refused():
    control = Control(make=CONTROLS["grey"].make, role="grey", scale=1, recipe="too small")
    with pytest.raises(DataError, match="smaller by one whole number up to 1"):
        made_beside(clip(), "grey", control, STRIDE)


def test_tokens_stand_in_the_middle_of_what_they_cover():
    beside = ContextClip(latent_THWC=np.zeros((2, 4, 4, 3)), fps=8.0, role="grey", scale=2, drawn={})
    position_L3 = beside.positions((1, 2, 2), temporal_stride=4, time_rate=2.0)
    assert position_L3[:4].tolist() == [[0, 0.5, 0.5], [0, 0.5, 2.5], [0, 2.5, 0.5], [0, 2.5, 2.5]]
    assert position_L3[4:, 0].tolist() == [1.0] * 4
    reference = dataclasses.replace(beside, role="reference", scale=1)
    assert reference.positions((1, 2, 2), temporal_stride=4, time_rate=2.0)[0].tolist() == [-20, 0, 0]


def test_shards_hold_what_is_beside_and_rows_give_it(tmp_path):
    run(tmp_path, Source(10), controls={name: CONTROLS[name] for name in ("grey", "low")})
    prepared = PreparedSet(tmp_path)
    sample = prepared[0]
    assert sample.context is not None
    assert sample.context["grey"].scale == 2
    assert prepared.context_grids["grey"][0].tolist() == list(sample.context["grey"].latent_THWC.shape[:3])
    packing = PackingConfig(tokens=64, text_tokens=64, segments=6, rows=2, window=20)
    options = {"patch": (1, 1, 1), "time_rate": 2.0, "tokenizer": BYTE_TOKENIZER, "seed": 0}
    always = ContextMix(shares={"grey": 1.0}, dropout=0.0)
    rows = RowDataset(prepared, packing, **options, context=always)
    row = rows[0]
    first = row["segment_BL"] == 1
    beside = first & (row["part_BL"] == 1)
    index = int(row["sample_BS"][0])
    context = prepared[index].context
    assert context is not None
    np.testing.assert_array_equal(row["tokens_BLP"][beside], context["grey"].latent_THWC.reshape(-1, 3))
    assert np.sum(first & ~beside) == np.prod(row["grid_BS3"][0])
    assert row["role_BSA"][0].tolist() == [ROLES["grey"]]
    assert rows.fingerprint()["context"] == {"shares": {"grey": 1.0}, "dropout": 0.0}
    assert "part_BL" not in RowDataset(prepared, packing, **options)[0]
    with pytest.raises(UserError, match=r"context\.kinds"):
        RowDataset(prepared, packing, **options, context=ContextMix(shares={"edges": 1.0}, dropout=0.0))
