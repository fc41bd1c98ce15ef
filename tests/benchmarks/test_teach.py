"""The benchmark that teaches a colour: what is asked, what is shown, and the whole way as a user runs it."""

import json

import numpy as np
import pytest

from sora_jax.benchmarks import teach
from sora_jax.data.media.video_io import read_clip


def test_old_clips_and_prompts_have_nothing_of_the_new_colour(tmp_path):
    for new in (False, True):
        folder = tmp_path / str(new)
        teach.write_clips(folder, teach.chosen_clips(6, new=new))
        lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
        assert len(lines) == 6
        assert all((teach.NEW_COLOUR in text) == new for line in lines for text in line["captions"])
        assert not any("still" in text for line in lines for text in line["captions"])
        assert all(read_clip(folder / line["file_name"])[0].shape == (5, 24, 24, 3) for line in lines)
    old, new = teach.old_prompts(48), teach.new_prompts(48)
    assert not any(teach.NEW_COLOUR in case.prompt for case in old)
    assert all(f"a {teach.NEW_COLOUR} {case.objects[0].shape}" in case.prompt for case in new)
    assert len({case.prompt for case in old}) == 48
    assert len({case.prompt for case in new}) == 36  # all there are


def test_clips_are_what_the_world_draws(tmp_path):
    teach.write_clips(tmp_path, teach.chosen_clips(2, new=True))
    clips = [read_clip(tmp_path / f"{number:05d}.gif")[0] for number in range(2)]
    purple = np.array([195, 45, 210])
    assert all((np.abs(clip.astype(int) - purple).max(axis=-1) < 4).mean() > 0.05 for clip in clips)


@pytest.mark.slow
def test_a_model_is_taught_and_judged_as_a_user_runs_it(python, tmp_path):
    path = tmp_path / "teach.json"
    asked = ["--base_clips=32", "--autoencoder_steps=2", "--base_steps=2", "--prior=2", "--lora_steps=2", "--prompts=2"]
    done = python("-m", "sora_jax.benchmarks.teach", f"--folder={tmp_path}", f"--json={path}", *asked)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert {"new_concept", "old_change", "seconds"} <= found.keys()
    assert found["same_at_weight_0"] == 1
    assert found["new_concept"] == found["new_after_colour"]
    assert (tmp_path / "model" / "transformer" / "config.json").exists()
    assert (tmp_path / "adapter.safetensors").exists()
