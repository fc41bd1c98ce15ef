"""The benchmark of the claim on re-captioning: mixes of captions, and the whole way as a user runs it."""

import dataclasses
import json
from pathlib import Path

import pytest

from sora_jax.benchmarks import recaption_claim
from sora_jax.benchmarks.recaption_lessons import Trial
from sora_jax.experiment.settings import read_settings
from tests.toy import __file__ as toy

TOY, TOY_CAPTIONS = toy, toy.replace("toy.py", "toy_captions.py")


def trial(folder: Path, clips: int) -> Trial:
    return Trial(folder=folder, config=TOY, captioner=TOY_CAPTIONS, clips=clips, clean=16, prompts=2, draws=2, seed=0)


def test_a_mix_draws_new_captions_as_often_as_it_says(tmp_path):
    table, mixed = tmp_path / "captions.jsonl", tmp_path / "mixed.jsonl"
    rows = [{"file": f"shapes-train-0-{number}", "captions": ["new", "on new"]} for number in range(6)]
    table.write_text("\n".join(map(json.dumps, rows)) + "\n")
    recaption_claim.write_mix(trial(tmp_path, 6), table, mixed, share=0.8)
    found = [json.loads(line) for line in mixed.read_text().splitlines()]
    assert [row["file"] for row in found] == [row["file"] for row in rows]
    for row in found:
        weights = {"new": 0.0, "old": 0.0}
        for caption, weight in zip(row["captions"], row["weights"], strict=True):
            weights["new" if "new" in caption else "old"] += weight
        assert weights == pytest.approx({"new": 0.8, "old": 0.2})


def test_another_seed_trains_anew_on_the_same_clips_and_prompts(tmp_path):
    first = trial(tmp_path, 6)
    configs = [dataclasses.replace(first, seed=seed).config_of(TOY) for seed in (0, 1)]
    assert [config.seed for config in configs] == [0, 1]
    worlds = [read_settings(config).shapes.source(seed=config.seed, split="heldout") for config in configs]
    assert [world.captions(0) for world in worlds] == [worlds[0].captions(0)] * 2
    assert worlds[0].source_id(0) == worlds[1].source_id(0)


def test_without_a_folder_no_run_of_another_command_is_written_into(python):
    done = python("-m", "sora_jax.benchmarks.recaption_claim", "--help")
    assert "(default: 'runs/claim')" in done.stdout.partition("--workdir: ")[2].partition("--")[0]


@pytest.mark.slow
def test_the_claim_is_measured_as_a_user_runs_it(python, tmp_path):
    path, folder = tmp_path / "claim.json", tmp_path / "claim"
    asked = [f"--config={TOY}", f"--captioner={TOY_CAPTIONS}", "--clips=48", "--clean=16", "--prompts=4", "--draws=1"]
    command = ("-m", "sora_jax.benchmarks.recaption_claim", f"--workdir={folder}", f"--json={path}", *asked)
    done = python(*command, fresh=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert {"gain", "of_clean", "following_clean", "following_recaptioned", "following_spoiled"} <= found.keys()
    assert found["captions_recall_spoiled"] == pytest.approx(0.35, abs=0.15)
    assert len((folder / "captioner.jsonl").read_text().splitlines()) == 48
    again = python(*command, fresh=True)
    assert again.returncode == 0, again.stderr
    unlike = {"rate"}
    assert {k: v for k, v in json.loads(path.read_text()).items() if k not in unlike} == {
        k: v for k, v in found.items() if k not in unlike
    }
