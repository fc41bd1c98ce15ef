"""A config is checked as a whole, before anything compiles."""

import dataclasses
import math
import typing

import pytest

from sora_jax.core.errors import UserError
from sora_jax.experiment.kinds import KINDS
from sora_jax.experiment.loading import example_jobs, limits_of
from sora_jax.experiment.preflight import check_start
from sora_jax.experiment.sample_prompts import configured_examples
from sora_jax.experiment.settings import Settings, read_settings
from sora_jax.generate.job import read_job
from sora_jax.generate.request import Request

ELSEWHERE = {"stages.videos.start_from": "runs/other/checkpoints/videos"}


def refused(config, check=read_settings):
    with pytest.raises(UserError) as caught:
        check(config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": ("autoencoder", "prepare", "vidoes")}, "run names the stage 'vidoes', but stages has autoencoder"),
        ({"run": ("prepare", "autoencoder", "videos")}, "kinds prepare, autoencoder, diffusion; it must be"),
        ({"run": ("videos",)}, "run has stages of kinds diffusion; it must be autoencoder stages, one or"),
        ({"run": ("autoencoder", "videos")}, "kinds autoencoder, diffusion; it must be"),
        ({"run": ("autoencoder", "prepare", "prepare")}, "kinds autoencoder, prepare, prepare; it must be"),
        ({"autoencoder_loss.perceptual": 1.0}, "autoencoder_loss.perceptual 1 with perceptual_weights None"),
        ({"perceptual_weights": "vgg.safetensors"}, "perceptual 0 with perceptual_weights vgg.safetensors"),
        ({"stages.autoencoder.adversarial": -0.1}, "config.stages.autoencoder: adversarial -0.1 must be 0 for"),
        ({"discriminator.levels": 0}, "config.discriminator: discriminator: width 32 and levels 0 must be 1 or more"),
        (
            {"stages.autoencoder.crops.buckets": ((2, 16, 16, 8), (5, 16, 17, 8))},
            "crops.buckets (2, 16, 16, 8): frames 2 is not 1 plus a multiple of 4 (autoencoder); nearest: 1, 5; "
            "stages.autoencoder.crops.buckets (5, 16, 17, 8): width 17 is not divisible by 4",
        ),
        ({"codec.chunk_frames": 6}, "codec.chunk_frames 6 is not a multiple of the autoencoder's stride 4"),
        ({"run": ()}, "run has stages of kinds none; it must be"),
        ({"run": ("autoencoder", "prepare", "images", "images")}, "run names a stage twice"),
        ({"stages.videos.kind": "difusion"}, "config.stages.videos.kind 'difusion' is none of autoencoder, prepare"),
        ({"stages.videos.steps": 0}, "config.stages.videos: steps is 0: it must be at least 1"),
        ({"stages.videos.mix.images": -1.0}, "config.stages.videos.mix: shares images -1 and videos"),
        ({"stages.videos.token_drop": (0.5, 0.2)}, "config.stages.videos: token_drop (0.5, 0.2) must be two shares"),
        ({"stages.videos.token_drop": (0.0, 1.0)}, "token_drop (0, 1) must be two shares from 0 to less than 1"),
        ({"stages.videos.token_drop": (-0.1, 0.5)}, "token_drop (-0.1, 0.5) must be"),
        ({"text.encoder": "umt"}, "text.encoder 'umt' is none of bytes, minilm, clip, t5, umt5"),
        ({"text.weights": "umt5"}, "text.weights umt5 with text.encoder 'bytes', which is trained: leave it None"),
        ({"data.max_tokens": 37}, "data.max_tokens 37 exceeds a row's packing.tokens 36"),
        ({"data.min_tokens": 25}, "config.data: min_tokens 25 exceeds max_tokens 24"),
        ({"data.max_bad_share": 1.5}, "config.data: max_bad_share 1.5 is outside [0, 1]"),
        ({"data.fps": 0.0}, "config.data: fps 0 must be more than 0, or None for each clip's own rate"),
        ({"data.fps": 8.0}, "data.fps 8 is for clips that are decoded: set shapes.fps instead"),
        ({"text.max_tokens": 97}, "text.max_tokens 97 exceeds a row's packing.text_tokens 96"),
        ({"data.source": "folder"}, "data.source 'folder' needs a folder: pass --config.data.path=DIR"),
        ({"data.source": "webdataset"}, "'webdataset' needs tar files: pass --config.data.path=FILE.tar"),
        ({"data.source": "arrayrecord"}, "'arrayrecord' needs records: pass --config.data.path=FILE.arrayrecord"),
        ({"data.source": "tfds"}, "'tfds' needs a data set: pass --config.data.path=DIR/NAME/VERSION"),
        ({"data.source": "internet"}, "must be one of 'shapes', 'folder', 'webdataset', 'arrayrecord', 'tfds', not"),
        ({"seed": -1}, "seed -1 must be 0 or more"),
        ({"precision": "float16"}, "config.precision must be one of 'float32', 'bfloat16' or None"),
        ({"optimizer.name": "sgd"}, "config.optimizer.name must be one of 'adamw', 'muon', not 'sgd'"),
        (
            {"sampling.solver": "rk4"},
            "config.sampling: solver 'rk4' is not one of: euler, heun, dpm, unipc, stochastic",
        ),
        ({"sampling.fps": 0.0}, "config.sampling: fps 0 must be more than 0"),
        ({"evaluation.prompts": 500}, "config.evaluation: the world has 1 to 72 such prompts, asked for 500"),
        ({"checkpoint.every_steps": 0}, "config.checkpoint: every_steps is 0"),
        (
            {"checkpoint.keep_every_steps": 4},
            "config.checkpoint: keep_every_steps 4 must be a multiple of every_steps 3",
        ),
        (
            {"stages.videos.start_rules": ("a -> b",)},
            "config.stages.videos: start_rules ['a -> b'] say how to start from",
        ),
        ({**ELSEWHERE, "stages.videos.start_rules": ("a(",)}, "'a(' is no regular expression: missing )"),
        ({**ELSEWHERE, "stages.videos.start_rules": ("a = b",)}, "'a = b' must be 'REGEX -> NAME' or 'REGEX -> fresh'"),
        ({"log.every_steps": 0}, "config.log: every_steps is 0"),
        ({"ema.widths": (0.5,)}, "config.ema: ema widths (0.5,) must be"),
        ({"transformer.heads": 3}, "config.transformer: transformer: width 16 over 3 heads"),
        ({"transformer.remat": "some"}, "config.transformer"),
        ({"stages.videos.known.none": 0.5}, "config.stages.videos.known: known-token shares sum to"),
    ],
)
def test_what_cannot_work_is_refused_with_its_key(toy_config, changes, said):
    config = toy_config()
    config.update_from_flattened_dict(changes)
    assert said in refused(config)


def test_all_problems_are_told_at_once(toy_config):
    tree = toy_config().to_dict()
    tree["stages"]["videos"]["stepz"] = 1
    tree["stages"]["images"]["steps"] = "many"
    del tree["log"]["every_steps"]
    said = refused(tree)
    assert "config.stages.videos.stepz is unknown; did you mean steps?" in said
    assert "config.stages.images.steps must be int, not 'many'" in said
    assert "config.log.every_steps is missing" in said


@pytest.mark.parametrize("name", ["../videos", "a/b", "videos [2]", "", ".videos", "vid\u00e9os"])
def test_a_stage_is_called_as_a_folder_can_be(toy_config, name):
    tree = toy_config().to_dict()
    tree["stages"][name] = tree["stages"]["videos"]
    tree["run"] = ("autoencoder", "prepare", name)
    assert f"run names the stage {name!r}: its folder is called so; use a to z" in refused(tree)


def test_a_tilde_in_a_path_is_a_home(toy_config, monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    config = toy_config()
    changes = {"data.source": "folder", "data.path": "~/clips", "data.captions": "~/c.csv"}
    config.update_from_flattened_dict(changes | {"stages.videos.start_from": "~/runs/a/checkpoints/videos"})
    config.sampling.prompts = ("~/a",)
    settings = read_settings(config)
    assert (settings.data.path, settings.data.captions) == ("/homes/me/clips", "/homes/me/c.csv")
    assert settings.stages["videos"].start_from == "/homes/me/runs/a/checkpoints/videos"
    assert settings.sampling.prompts == ("~/a",)
    config.data.path = "~nobody-here/clips"
    assert "~nobody-here/clips names no home of this machine" in refused(config)


def test_a_tree_that_is_no_config_of_ours_is_told_where_to_start():
    assert refused({"learning_rate": 3}) == "the config needs `run` and `stages`; start it from configs/base.py"


def test_strides_follow_from_the_models(toy_config):
    settings = read_settings(toy_config())
    assert settings.stride == (4, 4, 4)
    assert settings.token_stride == (4, 8, 8)
    assert settings.patch_width == 1 * 2 * 2 * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"packing.rows": 12}, "packing.rows is 12, not a multiple of 8"),
        ({"stages.videos.accumulate": 2}, "packing.rows is 8, not a multiple of 16"),
        ({"stages.autoencoder.crops.buckets": ((1, 16, 16, 4),)}, "a bucket of stages.autoencoder has 4 clips, not"),
        ({"mesh.data": 3}, "does not fit 8 devices"),
        ({"sampling.size": (16, 20)}, "width 20 is not divisible by 8 = 4 (autoencoder) x 2 (patch)"),
        ({"sampling.frames": 4}, "frames 4 is not 1 plus a multiple of 4 (autoencoder); nearest: 1, 5"),
        ({"sampling.frames": 4001}, "longer than the 60 s of sampling.max_seconds: a shorter video"),
        ({"sampling.refiner.tile": 52}, "sampling.refiner.tile is 52: give a multiple of the 8x8 px of a token, 48 or"),
        ({"sampling.refiner.tile": 40}, "sampling.refiner.tile is 40: give a multiple of the 8x8 px of a token, 48 or"),
        ({"sampling.prompts": ("",)}, "the prompt '' is empty"),
        ({"sampling.prompts": ("word " * 30,)}, "the prompt has 31 tokens and this model takes 24"),
    ],
)
def test_what_the_devices_or_the_examples_cannot_do_is_told_at_the_start(toy_config, changes, said):
    config = toy_config()
    config.update_from_flattened_dict(changes)
    assert said in refused(read_settings(config), check_start)


def test_the_toy_run_may_start(toy_config):
    settings = read_settings(toy_config())
    assert dict(check_start(settings).shape) == {"data": 8, "fsdp": 1, "sequence": 1, "tensor": 1}
    jobs = example_jobs(settings, configured_examples(settings), frames=5)
    assert [job.prompts for job in jobs] == [(prompt,) for prompt in settings.sampling.prompts]
    assert {(job.frames, job.size, job.request.seed, job.fps) for job in jobs} == {(5, (16, 16), 0, 8.0)}


@pytest.mark.parametrize(("size", "frames"), [((64, 64), 5), ((16, 16), 41), ((64, 80), 41)])
def test_examples_may_be_larger_than_a_row_as_by_flags(toy_config, size, frames):
    config = toy_config()
    config.sampling.size, config.sampling.frames = size, frames
    settings = read_settings(config)
    check_start(settings)
    limits, (prompt, *_) = limits_of(settings), settings.sampling.prompts
    asked = Request(prompt=(prompt,), frames=frames, size=f"{size[0]}x{size[1]}")
    example = example_jobs(settings, configured_examples(settings), frames=frames)[0]
    flagged = read_job(asked, limits_of(read_settings(toy_config())))
    assert (example.size, example.frames, example.fps) == (flagged.size, flagged.frames, flagged.fps) != ((16, 16), 5)
    assert math.prod(limits.grid(frames, size)) > limits.row_tokens
    assert (len(limits.windows(frames, size)) > 1) == (frames == 41)


def test_what_a_model_can_make_is_what_it_was_trained_on(toy_config):
    config = toy_config()
    limits = limits_of(read_settings(config))
    assert (limits.row_tokens, limits.text_tokens, limits.size, limits.frames, limits.fps) == (36, 24, (16, 16), 5, 8.0)
    assert limits.window == 9, "what training saw, 5, but room for one frame of tokens between two others"
    assert limits.overlap is None, "half of what a window can hold"
    assert limits.shared((16, 16)) == 1, "of three token frames"
    assert limits.knows
    config.shapes.frames = (5, 21)
    config.sampling.overlap = 9
    limits = limits_of(read_settings(config))
    assert (limits.window, limits.overlap) == (21, 9)
    assert limits.window_tokens((16, 16)) == 6
    assert limits.window_tokens((16, 24)) == 6
    assert limits.window_tokens((24, 24)) == 4, "of a row"
    for stage in ("images", "videos"):
        config.stages[stage].known.update({"none": 1.0, "first": 0.0, "last": 0.0, "ends": 0.0})
        config.stages[stage].known.update({"random_frames": 0.0, "region": 0.0})
    assert not limits_of(read_settings(config)).knows


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling.window": 5, "sampling.overlap": 5}, "overlap 5 leaves nothing of the window 5 to be made"),
        ({"sampling.window": 0}, "window 0 must be at least 1, or None"),
        ({"sampling.known_guidance": -1.0}, "known_guidance -1 is negative"),
        ({"sampling.cache": -1.0}, "cache -1 is negative"),
        ({"sampling.context_steps": 0}, "context_steps is 0: it must be at least 1"),
        ({"evaluation.tasks": 1}, "evaluation.tasks 1 must be 0, or 2 to 72"),
    ],
)
def test_sampling_out_of_range_is_refused(toy_config, changes, said):
    config = toy_config()
    config.update_from_flattened_dict(changes)
    assert said in refused(config, read_settings)


def dataclasses_in(hint, found):
    """Adds every dataclass that a type names, and those of its fields, to `found`."""
    if dataclasses.is_dataclass(hint) and hint not in found:
        found.add(hint)
        for field in typing.get_type_hints(hint).values():
            dataclasses_in(field, found)
    for part in typing.get_args(hint):
        dataclasses_in(part, found)
    return found


def test_no_part_of_the_settings_has_numbers_beside_those_of_the_config():
    parts = dataclasses_in(Settings, set())
    for kind in KINDS.values():
        dataclasses_in(kind.stage, parts)
    fields = [(part.__name__, field) for part in parts for field in dataclasses.fields(part)]
    assert len(parts) > 25
    assert [(part, field.name) for part, field in fields if field.default is not dataclasses.MISSING] == []
    assert [(part, field.name) for part, field in fields if field.default_factory is not dataclasses.MISSING] == []
