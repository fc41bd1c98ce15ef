"""Real clips, and those made of their captions, count once each; what is made is kept, and judged as was asked."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

import sora_jax
from configs import worlds
from sora_jax.core.errors import UserError
from sora_jax.data.media.writer import encode_gif
from sora_jax.experiment.distribution import SetComparison, comparison_of, judge_distribution, score_rows
from sora_jax.experiment.judged_clips import HELDOUT, GivenClips, RealClips
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.settings import read_settings
from sora_jax.train.workdir import Workdir


def folder(path, *lengths, captioned=True):
    """Returns a folder of clips of such lengths."""
    path.mkdir()
    for number, frames in enumerate(lengths):
        pixels = (
            np.full((frames, 16, 16, 3), 20 * number, np.uint8) + np.arange(frames, dtype=np.uint8)[:, None, None, None]
        )
        (path / f"{number}.gif").write_bytes(encode_gif(pixels, fps=10.0))
        if captioned:
            (path / f"{number}.txt").write_text(f"clip {number}")
    return path


@pytest.fixture
def settings(toy_config):
    return read_settings(toy_config())


def real(settings, tmp_path, reference=HELDOUT, count=6, *, captioned=True):
    return RealClips(Workdir(tmp_path / "run"), settings, str(reference), count, captioned=captioned)


def test_held_out_clips_of_the_drawn_world_are_as_long_as_samples(settings, tmp_path):
    clips = real(settings, tmp_path)
    shown = list(clips.read())
    assert clips.held_out
    assert [one.clip_THWC.shape[0] for one in shown] == [5] * 6
    assert [case.shape for case in clips.cases] == [one.clip_THWC.shape[:3] for one in shown]
    assert all(case.caption == one.caption for case, one in zip(clips.cases, shown, strict=True))
    assert len({one.clip_THWC.tobytes() for one in shown}) == 6
    more = real(settings, tmp_path, count=6)
    assert [one.caption for one in more.read()] == [one.caption for one in shown], "the same each time"


def test_held_out_clips_of_further_worlds_are_theirs(tmp_path):
    of_worlds = read_settings(worlds.get_config())
    clips = real(of_worlds, tmp_path, count=2)
    world = of_worlds.shapes.source(seed=of_worlds.seed, split="heldout", num_clips=2)
    told = {caption for number in range(2) for caption in world[number].captions}
    assert len(list(clips.read())) == 2
    assert {case.caption for case in clips.cases} <= told


def test_clips_of_a_folder_count_once_and_short_ones_not(settings, tmp_path, caplog):
    clips = real(settings, tmp_path, folder(tmp_path / "real", 7, 5, 3, 6))
    shown = list(clips.read())
    clips.tell()
    assert sorted(one.caption or "" for one in shown) == ["clip 0", "clip 1", "clip 3"]
    assert {one.clip_THWC.shape for one in shown} == {(5, 16, 16, 3)}
    assert (clips.left_out, clips.held_out) == (1, True)
    assert "2.gif: has 1 frames once it is cut to whole strides and data.max_tokens, and samples have 5" in caplog.text
    assert "the reference has 3 clips that can be used, not 6" in caplog.text


def test_what_a_model_made_needs_no_captions(settings, tmp_path):
    given = GivenClips(settings, str(folder(tmp_path / "made", 5, 5, 5, captioned=False)), 3)
    assert [one.caption for one in given.read(2)] == [None, None]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none holds 0 files but no video or image"):
        GivenClips(settings, str(tmp_path / "none"), 2)


def test_as_many_given_samples_are_judged_as_there_are_real_clips(settings, tmp_path):
    reference, made = folder(tmp_path / "real", 5, 5, 5, 3), folder(tmp_path / "made", 5, 5, 5, 3, 3)
    asked = SetComparison(reference=str(reference), samples_from=str(made))
    workdir = Workdir(tmp_path / "run")
    workdir.path.mkdir()
    found = judge_distribution(RunModels(workdir, settings), settings, asked)["distribution"]
    assert (found["clips"], found["fvd_random"]["samples"], found["drift_2"]["samples"]) == (3, 3, 3)
    assert (found["left_out"], found["samples_left_out"]) == (1, 2)


def test_clips_that_were_trained_on_are_told(toy_config, tmp_path, caplog):
    config, place = toy_config(), folder(tmp_path / "real", 5, 5, 5)
    config.data.source, config.data.path = "folder", str(place)
    caplog.set_level(logging.WARNING)
    assert not real(read_settings(config), tmp_path, place).held_out
    assert "samples that copy them come out best" in caplog.text
    with pytest.raises(UserError, match=r"no clips are held out: .* or give --reference=DIR"):
        real(read_settings(config), tmp_path)


@pytest.mark.parametrize(("source", "told"), [("folder", True), ("webdataset", False)])
def test_a_folder_around_clips_that_were_trained_on_is_told(toy_config, tmp_path, source, told):
    place = folder(tmp_path / "real", 5, 5, 5)
    (place / "more").mkdir()
    config = toy_config()
    config.data.source, config.data.path = source, str(place / "more")
    assert real(read_settings(config), tmp_path, place).held_out is not told


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"samples": 2}, "--samples=2 cannot be compared: 3 are the least"),
        ({"reference": "nowhere"}, "--reference=nowhere is not a folder"),
        ({"samples_from": "nowhere"}, "--samples_from=nowhere is not a folder"),
        ({"samples_from": HELDOUT}, "--samples_from=heldout are real clips"),
    ],
)
def test_what_cannot_be_compared_is_said_at_once(given, fault):
    with pytest.raises(UserError, match=fault):
        SetComparison(**given)


def test_what_is_for_the_distribution_is_refused_elsewhere():
    assert comparison_of("all", video_features=None, samples=None) is None
    assert comparison_of("distribution", video_features=None, samples=5) == SetComparison(samples=5)
    with pytest.raises(UserError, match="--samples is for the distribution alone: pass --part=distribution, not tasks"):
        comparison_of("tasks", video_features=None, samples=5)


def test_the_table_says_which_value_is_best():
    score = {"value": 1.0, "low": 0.5, "high": 1.5, "samples": 3, "weights": "abc"}
    rows = score_rows({"clips": 3, "fid_random": score, "drift_2": score})
    assert [(row["score"], row["best"], "weights" in row) for row in rows] == [
        ("fid_random", "smaller", False),
        ("drift_2", "as real", False),
    ]


@pytest.mark.slow
def test_samples_are_made_once_and_judged(toy_workdir, tmp_path):
    workdir = Path(shutil.copytree(toy_workdir, tmp_path / "toy"))
    run = sora_jax.open_run(workdir)
    found = run.evaluate("distribution", samples=4, steps=1)
    assert json.loads((workdir / "evaluation.json").read_text()) == found
    scores = found["distribution"]
    assert scores["fvd_random"]["samples"] == 4
    assert scores["fvd_random"]["low"] <= scores["fvd_random"]["value"] <= scores["fvd_random"]["high"]
    assert len(scores["fvd_random"]["weights"]) == 64
    assert scores["latent_drift_5"]["real"] > 0
    assert (scores["held_out"], scores["frames"], scores["seeds"]) == (True, 5, [2000, 2003])
    assert found.keys() > {"distribution", "shapes"}, "what was not asked for stays"
    made = sorted((workdir / "generated").rglob("*.npy"))
    pixels = [path.read_bytes() for path in made]
    times = [path.stat().st_mtime_ns for path in made]
    made[1].unlink()
    assert run.evaluate("distribution", samples=4, steps=1) == found
    assert [path.read_bytes() for path in made] == pixels, "the one that was missing is made again, as it was"
    assert [path.stat().st_mtime_ns == time for path, time in zip(made, times, strict=True)] == [
        True,
        False,
        True,
        True,
    ]
    assert (workdir / "samples" / "evaluation" / "distribution.gif").exists()
    other = run.evaluate("distribution", samples=4, samples_from=str(folder(tmp_path / "made", 5, 5, 5, 5)))
    assert other["distribution"]["samples_from"].endswith("made")
    assert other["distribution"]["fid_random"]["value"] > 0
