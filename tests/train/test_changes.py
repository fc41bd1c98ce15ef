"""What of its config a run may change as it goes on."""

import json
from pathlib import Path

import pytest

from sora_jax.checkpoints.manifest import MANIFEST
from sora_jax.core.config import differences, to_json
from sora_jax.train import changes

BEGUN = ("autoencoder", "prepare", "videos")


@pytest.fixture
def trees(toy_config):
    """Returns the tree of the toy config, twice, its stage of images not begun."""
    return [json.loads(to_json(toy_config())) for _ in range(2)]


def change(tree, key, value):
    *way, last = key.split(".")
    for name in way:
        tree = tree[name]
    assert last in tree or way == ["stages"], key
    tree[last] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("log.every_steps", 7),
        ("log.samples_per_stage", 1),
        ("sampling.prompts", ["a red circle"]),
        ("sampling.guidance.scale", 2.0),
        ("evaluation.prompts", 4),
        ("checkpoint.keep", 5),
        ("checkpoint.every_minutes", 5.0),
        ("data.readers", 9),
        ("data.max_bad_share", 0.5),
        ("data.path", "/elsewhere"),
        ("data.captions", "/elsewhere.csv"),
        ("data.curation.table", "/elsewhere"),
        ("mesh.fsdp", 2),
        ("codec.tile", 64),
        ("transformer.remat", "full"),
        ("transformer.attention", "plain"),
        ("autoencoder.remat", True),
        ("guard.max_skipped_steps", 99),
        ("stages.autoencoder.crops.cache_mb", 64),
        ("stages.prepare.batch", 1),
        ("stages.images.steps", 99),
        ("stages.images.schedule.learning_rate", 1.0),
        ("stages.more", {"kind": "diffusion"}),
        ("run", ["autoencoder", "prepare", "videos", "images"]),
        ("run", ["autoencoder", "prepare", "videos"]),
    ],
)
def test_what_no_weight_depends_on_may_change(trees, key, value):
    saved, config = trees
    saved["run"] = ["autoencoder", "prepare", "videos", "more"]
    config["run"] = saved["run"]
    change(config, key, value)
    assert differences(saved, config)
    assert changes.bound(saved, config, begun=BEGUN) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("precision", "bfloat16"),
        ("data.fps", 4.0),
        ("data.source", "folder"),
        ("data.max_frames", 9),
        ("data.curation.min_frames", 3),
        ("shapes.num_clips", 5),
        ("packing.rows", 4),
        ("packing.window", 32),
        ("autoencoder.width", 4),
        ("transformer.width", 4),
        ("text.max_tokens", 8),
        ("guard.on_spike", "skip"),
        ("optimizer.b1", 0.5),
        ("stages.videos.steps", 99),
        ("stages.videos.accumulate", 2),
        ("stages.autoencoder.crops.buckets", []),
        ("run", ["autoencoder", "prepare", "images", "videos"]),
        ("run", ["autoencoder", "prepare"]),
        ("run", ["autoencoder", "videos", "prepare"]),
    ],
)
def test_what_weights_depend_on_is_bound(trees, key, value):
    saved, config = trees
    saved["run"] = config["run"] = ["autoencoder", "prepare", "videos", "images"]
    change(config, key, value)
    (line,) = changes.bound(saved, config, begun=BEGUN)
    assert line.startswith(f"{key}: ")


def test_places_are_told_by_collection():
    lines = ['data.path: null -> "b"', 'more_data.a.captions: "c: d" -> null', "log.every_steps: 1 -> 2"]
    assert changes.moved(lines, main="main") == {"main": lines[0], "a": lines[1]}
    told = "shapes.caption_faults: null -> [0.5, 0.1]"
    assert changes.moved([told], main="main") == {"main": told}


@pytest.fixture
def place(tmp_path):
    """Returns a workdir whose stages that train have been saved."""
    for name in ("autoencoder", "videos"):
        (tmp_path / "my runs" / "checkpoints" / name / "8").mkdir(parents=True)
        (tmp_path / "my runs" / "checkpoints" / name / "8" / MANIFEST).touch()
    return tmp_path / "my runs"


STEPS = ["stages.videos.steps: 8 -> 99"]


def test_a_refusal_says_how_to_begin_with_what_is_trained(trees, place):
    saved, config = trees
    said = changes.refusal(place, STEPS, saved=saved, config=config, begun=BEGUN)
    assert said == (
        f"{place} belongs to another config (stages.videos.steps: 8 -> 99): restore the old values, or give another "
        """--workdir, to which '--config.run=("prepare","videos")' """
        f"'--config.stages.videos.start_from={place}/checkpoints/videos' "
        f"'--config.autoencoder.start_from={place}' gives what is trained here"
    )
    added = ["transformer.lora.alpha: null -> 2.0", "transformer.lora.rank: null -> 2"]
    assert "gives what" in changes.refusal(place, added, saved=saved, config=config, begun=BEGUN)
    saved["autoencoder"]["weights"] = "wan.safetensors"
    assert "autoencoder.start_from" not in changes.refusal(place, STEPS, saved=saved, config=config, begun=BEGUN)


PLAIN = "restore the old values, or give another --workdir"


@pytest.mark.parametrize(
    "key",
    [
        "autoencoder.width",
        "transformer.width",
        "text.depth",
        "captioner.depth",
        "text.encoder",
        "diffusion.path.prediction",
    ],
)
def test_weights_that_do_not_fit_are_not_offered(trees, place, key):
    saved, config = trees
    assert changes.refusal(place, [f"{key}: 1 -> 2"], saved=saved, config=config, begun=BEGUN).endswith(PLAIN)


def test_adapters_that_do_not_fit_are_not_offered(trees, place):
    saved, config = trees
    saved["transformer"]["lora"]["rank"] = 2
    lines = ["transformer.lora.rank: 2 -> 4"]
    assert changes.refusal(place, lines, saved=saved, config=config, begun=BEGUN).endswith(PLAIN)


def test_what_is_not_there_is_not_offered(trees, place):
    saved, config = trees
    assert changes.refusal(place, STEPS, saved=saved, config=config, begun=BEGUN[:2]).endswith(PLAIN)
    (place / "checkpoints" / "videos" / "8" / MANIFEST).unlink()  # killed before its first save
    assert changes.refusal(place, STEPS, saved=saved, config=config, begun=BEGUN).endswith(PLAIN)


def test_stages_that_the_other_config_has_not_are_not_offered(trees, place):
    saved, config = trees
    del config["stages"]["videos"]
    assert changes.refusal(place, STEPS, saved=saved, config=config, begun=BEGUN).endswith(PLAIN)


def test_a_config_that_differs_in_much_is_not_listed_in_full(trees):
    lines = [f"key{number}: 0 -> 1" for number in range(9)]
    saved, config = trees
    said = changes.refusal(Path("/a"), lines, saved=saved, config=config, begun=())
    assert "key4: 0 -> 1 and 4 more)" in said


def test_a_key_that_is_gone_is_forgotten_where_it_said_nothing(trees):
    tree, expected = trees
    tree["transformer"]["embedding"] = tree["diffusion"]["embedding_dropout"] = None
    assert changes.completed(tree) == changes.completed(expected)
    tree["transformer"]["embedding"] = 128
    assert changes.completed(tree)["transformer"]["embedding"] == 128
