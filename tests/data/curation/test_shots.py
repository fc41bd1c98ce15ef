"""Cuts between joined clips are found where they are, and windows fill shots without crossing a cut."""

import itertools
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.data.curation.shots import cut_windows, find_shots
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.sources.shapes_world import ShapesWorld
from tests import small

SHARED = Path(os.environ.get("SORA_JAX_CLIPS", "/nonexistent"))


def shots_of(pixels_THWC: np.ndarray) -> list[tuple[int, int]]:
    return find_shots(pixels_THWC, ratio=3.0, change=15.0)


def drawn() -> list[np.ndarray]:
    """Returns moving clips of the drawn world, each on another background than the one before."""
    config = small.world_config(seed=3, num_clips=40, sides=((48, 64),), frames=(12,), image_share=0.0, fps=(8.0,))
    clips = [ShapesWorld(config)[index].pixels_THWC for index in range(40)]
    chosen = clips[:1]
    for clip in clips[1:]:
        if abs(float(np.median(clip)) - float(np.median(chosen[-1]))) > 50:
            chosen.append(clip)
    return chosen[:5]


def test_joined_drawn_clips_are_cut_where_they_were_joined():
    clips = drawn()
    assert len(clips) == 5
    assert shots_of(np.concatenate(clips)) == [(start, start + 11) for start in range(0, 60, 12)]


def test_a_clip_of_one_shot_is_not_cut():
    for clip in drawn():
        assert shots_of(clip) == [(0, 11)]
    assert shots_of(np.zeros((1, 16, 16, 3), np.uint8)) == [(0, 0)]


def test_a_brighter_second_half_that_fades_in_is_not_cut():
    clip = drawn()[0].astype(float)
    fading = (clip * np.linspace(0.5, 1.0, len(clip))[:, None, None, None]).astype(np.uint8)
    assert shots_of(fading) == [(0, 11)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="SORA_JAX_CLIPS names no folder of real and damaged clips")
def test_joined_real_clips_are_cut_where_they_were_joined():
    names = ("gen_couple_talking.mp4", "gen_cat_playing_on_sofa.mp4")
    clips = [read_clip(SHARED / "real" / name, max_frames=24, short_side=72)[0][:, :72, :120] for name in names]
    assert shots_of(np.concatenate(clips)) == [(0, 23), (24, 47)]


def test_without_the_library_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(UserError, match=r"needs PySceneDetect .*: pip install scenedetect-headless"):
        shots_of(np.zeros((2, 16, 16, 3), np.uint8))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 20), st.integers(1, 20), st.integers(1, 12))
def test_windows_fill_shots_in_order(lengths, max_frames, min_frames, at_most):
    edges = [0, *itertools.accumulate(lengths)]
    shots = [(first, after - 1) for first, after in itertools.pairwise(edges)]
    every = cut_windows(shots, max_frames=max_frames, min_frames=min_frames, at_most=999)
    least = min(min_frames, max_frames)
    for first, last in every:
        assert least <= last - first + 1 <= max_frames
        assert any(start <= first and last <= end for start, end in shots)
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(every))
    lost = sum(lengths) - sum(last - first + 1 for first, last in every)
    assert lost == sum(n % max_frames for n in lengths if n % max_frames < least)
    some = cut_windows(shots, max_frames=max_frames, min_frames=min_frames, at_most=at_most)
    assert len(some) == min(at_most, len(every))
    assert set(some) <= set(every)
    if at_most > 1 and every:
        assert (some[0], some[-1]) == (every[0], every[-1])
