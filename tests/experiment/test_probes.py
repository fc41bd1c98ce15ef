"""Runs on further drawn worlds: their settings, what they refuse, and a whole one that ends with its probes."""

import json
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from sora_jax.core.errors import UserError
from sora_jax.data.scenes.worlds import WORLDS, DrawnWorlds
from sora_jax.experiment.generator_evaluation import clips_of_probes
from sora_jax.experiment.settings import read_settings

ROOT = Path(__file__).parents[2]


def load(name: str) -> ConfigDict:
    return runpy.run_path(str(ROOT / "configs" / name))["get_config"]()


def test_settings_of_worlds_draw_them():
    settings = read_settings(load("worlds.py"))
    assert settings.shapes.worlds == WORLDS
    assert (settings.probed, settings.longest) == (True, 17)
    source = settings.shapes.source(seed=0, split="heldout", num_clips=5)
    assert isinstance(source, DrawnWorlds)
    assert [source.scene(index).held_out for index in range(5)] == [True] * 5
    assert clips_of_probes(settings, "all", None) == clips_of_probes(settings, "probes", None) == 72
    assert (clips_of_probes(settings, "probes", 3), clips_of_probes(settings, "autoencoder", 3)) == (3, 0)


def test_what_probes_cannot_judge_is_refused():
    base = read_settings(load("base.py"))
    assert (base.probed, clips_of_probes(base, "all", None)) == (False, 0)
    with pytest.raises(UserError, match=r"probes need a run on further worlds.*train configs/worlds\.py"):
        clips_of_probes(base, "probes", None)
    config = load("worlds.py")
    for key, value in {"image_share": 0.5, "max_objects": 2, "occluder": True, "wordings": 2}.items():
        of_worlds = config.shapes[key]
        config.shapes[key] = value
        with pytest.raises(UserError, match=f"{key} {value} with worlds: these have none such, set {of_worlds}"):
            read_settings(config)
        config.shapes[key] = of_worlds
    config.update_from_flattened_dict({"shapes.worlds": ("permanence", "magic")})
    with pytest.raises(UserError, match="got 'magic'"):
        read_settings(config)


def test_a_config_of_before_there_were_worlds_is_read():
    config = load("base.py").to_dict()
    expected = read_settings(config)
    del config["shapes"]["worlds"]
    del config["evaluation"]["probe_clips"]
    settings = read_settings(config)
    assert (settings.shapes, settings.evaluation.probe_clips) == (expected.shapes, None)


@pytest.mark.slow
def test_a_run_on_worlds_ends_with_its_probes(python, tmp_path):
    config = ROOT / "tests" / "toy.py"
    changes = {
        "run": '("autoencoder","prepare","videos")',
        "shapes.worlds": '("permanence","game","physics")',
        "shapes.num_clips": 24,
        "shapes.sides": "((24,40),)",
        "shapes.frames": "(9,)",
        "shapes.image_share": 0.0,
        "data.max_frames": 9,
        "data.max_tokens": 45,
        "packing.tokens": 45,
        "packing.segments": 1,
        "stages.videos.mix.images": 0.0,
        "stages.videos.mix.videos": 1.0,
        "stages.autoencoder.crops.buckets": "((9,24,40,2),)",
        "sampling.size": "(24,40)",
        "sampling.frames": 9,
        "evaluation.prompts": 0,
        "evaluation.probe_clips": 3,
    }
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    workdir = tmp_path / "run"
    done = python("-m", "sora_jax.main", f"--config={config}", f"--workdir={workdir}", *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads((workdir / "evaluation.json").read_text())["probes"]
    assert {"permanence", "game", "physics", "physics_outside", "physics_velocity_ratio"} <= found.keys()
    assert sum(row["clips"] for row in found["groups"]) == 9
    assert "Probe: a player follows actions" in (workdir / "report.html").read_text()
    done = python("-m", "sora_jax.evaluate", f"--workdir={workdir}", "--part=probes", "--clips=3")
    assert done.returncode == 0, done.stderr
    assert f"report: {workdir / 'report.html'}" in done.stdout
    assert json.loads((workdir / "evaluation.json").read_text())["probes"] == found
