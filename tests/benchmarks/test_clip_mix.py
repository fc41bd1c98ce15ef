"""Every arrangement of the mix holds the same tokens, each with what belongs to it."""

import math

import numpy as np
import pytest

from sora_jax.benchmarks.clip_mix import (
    CLIP_GRIDS,
    EQUAL_GRID,
    ClipLayout,
    bucketed,
    draw_clips,
    packed,
    padded_batches,
)
from sora_jax.video import shapes

LAYOUT = ClipLayout(patch_width=4, text_dim=6, text_tokens=2, side_scale=1)
CLIPS = draw_clips(31, LAYOUT)
ARRANGED = {
    **{f"packed, short {short}": packed(CLIPS, row_tokens=512, rows=3, short_tail=short) for short in (True, False)},
    **{
        f"padded, short {short}": padded_batches(CLIPS, batch_tokens=1_024, short_tail=short) for short in (True, False)
    },
    **{f"bucketed, short {short}": bucketed(CLIPS, batch_tokens=1_024, short_tail=short) for short in (True, False)},
}


def clip_rows(clips):
    """Returns each clip as one sorted-by-content row of all its numbers."""
    rows = []
    for clip in clips:
        position_L3 = shapes.positions(clip.grid, 1.0)
        sigma_L1 = np.full((clip.tokens, 1), clip.sigma, np.float32)
        rows.append(np.concatenate([clip.tokens_LP, clip.target_LP, position_L3, sigma_L1], axis=1, dtype=np.float32))
    return sorted((row.tobytes(), clip.text_KE.tobytes()) for row, clip in zip(rows, clips, strict=True))


def segments_of(arrangement):
    """Returns the same of every segment of every row of an arrangement."""
    found = []
    for batch in arrangement.batches:
        for row in range(len(batch["segment_BL"])):
            for segment in sorted({*batch["segment_BL"][row].tolist()} - {0}):
                here = batch["segment_BL"][row] == segment
                sigma_L1 = batch["levels_BG"][row][batch["level_BL"][row][here]][:, None]
                parts = [batch[name][row][here] for name in ("tokens_BLP", "target_BLP", "position_BL3")]
                text_KE = batch["text_BKE"][row][batch["text_segment_BK"][row] == segment]
                found.append((np.concatenate([*parts, sigma_L1], axis=1).tobytes(), text_KE.tobytes()))
    return sorted(found)


@pytest.mark.parametrize("name", list(ARRANGED))
def test_every_arrangement_holds_every_clip_once(name):
    assert segments_of(ARRANGED[name]) == clip_rows(CLIPS)
    assert ARRANGED[name].work().tokens == sum(clip.tokens for clip in CLIPS)
    assert ARRANGED[name].work().pairs == sum(clip.tokens**2 for clip in CLIPS)
    assert ARRANGED[name].work().text_tokens == 2 * len(CLIPS)


def test_the_stream_is_always_the_same_and_a_longer_one_begins_with_it_in_size():
    again, longer = draw_clips(31, LAYOUT), draw_clips(31, ClipLayout(**{**vars(LAYOUT), "side_scale": 2}))
    assert clip_rows(again) == clip_rows(CLIPS)
    assert [clip.tokens for clip in longer] == [4 * clip.tokens for clip in CLIPS]


def test_the_mix_is_about_log_uniform():
    counts = sorted(math.prod(grid) for grid in CLIP_GRIDS)
    steps = np.array(counts[1:]) / counts[:-1]
    assert (counts[0], counts[-1]) == (48, 480)
    assert steps.min() > 1.1
    assert steps.max() < 1.35
    assert sum(grid[0] == 1 for grid in CLIP_GRIDS) == len(CLIP_GRIDS) // 2


@pytest.mark.parametrize("how", ["packed", "padded", "bucketed"])
def test_what_is_filled_up_counts_against_an_arrangement(how):
    full, short = ARRANGED[f"{how}, short False"], ARRANGED[f"{how}, short True"]
    assert full.fill() < short.fill() <= 1
    # A shape is one program of XLA: full batches need one, or one for each bucket.
    buckets = len({clip.grid for clip in CLIPS})
    assert len(full.shapes()) == (buckets if how == "bucketed" else 1)
    assert all(batch["segment_BL"].any(axis=1).all() for batch in short.batches)
    slots = sum(batch["segment_BL"].size for batch in full.batches)
    assert full.fill() == pytest.approx(sum(clip.tokens for clip in CLIPS) / slots)


def test_exact_buckets_without_tails_waste_nothing():
    assert ARRANGED["bucketed, short True"].fill() == 1
    alike = bucketed(draw_clips(8, LAYOUT, grids=(EQUAL_GRID,)), batch_tokens=1_024, short_tail=False)
    assert [batch["segment_BL"].shape for batch in alike.batches] == [(4, 256)] * 2
    assert alike.fill() == 1


def test_batches_are_no_larger_than_the_packed_ones():
    assert all(
        batch["segment_BL"].size <= 1_024
        for how in ("padded", "bucketed")
        for batch in ARRANGED[f"{how}, short False"].batches
    )
