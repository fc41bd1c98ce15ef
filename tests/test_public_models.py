"""Public models as a user has them: a folder, one command, a video."""

import dataclasses
import re
import shutil

import numpy as np
import pytest

import sora_jax
from configs import base, wan_lora
from sora_jax.core.errors import UserError
from sora_jax.data.media.video_io import read_clip
from sora_jax.experiment.loading import given_statistics, pack_layout
from sora_jax.experiment.model_settings import warn_of_unheard
from sora_jax.experiment.settings import read_settings
from sora_jax.generate.job import read_job
from sora_jax.generate.request import Request
from sora_jax.models.interop.variants import VARIANTS, public_statistics
from tests import public_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    public_model.write_diffusers(root / "pipeline")
    public_model.write_original(root / "experts", (5, 6))
    return root


def test_a_folder_makes_a_video(python, models, tmp_path):
    """Two experts in the layout of the public code, the other parts as single files."""
    output = tmp_path / "a.mp4"
    done = python(
        "-m",
        "sora_jax.sample",
        f"--model={models / 'experts'}",
        "--prompt=a red circle",
        "--size=16x16",
        "--frames=5",
        "--steps=3",
        f"--output={output}",
    )
    assert done.returncode == 0, done.stderr
    clip, fps = read_clip(output)
    assert clip.shape == (5, 16, 16, 3)
    assert fps == 16
    assert len(np.unique(clip)) > 20
    variant = VARIANTS["t2v_a14b"]
    assert f"is {variant.title} (t2v_a14b)" in done.stdout
    assert "3 steps of unipc on the grid wan with shift 12, guidance 4, 3 below level 0.875" in done.stdout
    assert f"negative prompt: {variant.negative}" in done.stdout


def test_a_model_brings_its_settings_and_what_is_said_otherwise_is_heard(models):
    settings = sora_jax.open_model(models / "pipeline").settings
    sampling, variant = settings.sampling, VARIANTS["t2v_1_3b"]
    assert (sampling.steps, sampling.solver, sampling.grid, sampling.shift) == (50, "unipc", "wan", 5.0)
    assert (sampling.size, sampling.frames, sampling.fps, sampling.window) == ((480, 832), 81, 16.0, 81)
    assert (sampling.guidance.scale, sampling.guidance.interval, sampling.low_guidance) == (5.0, (0.0, 1.0), None)
    assert (settings.text.encoder, settings.text.max_tokens, settings.transformer.text_pad_to) == ("umt5", 512, 512)
    assert dataclasses.replace(settings.transformer, lora=None) == public_model.TRANSFORMER
    assert settings.diffusion.path.prediction == "velocity"
    assert settings.autoencoder.channels == variant.out_channels
    changes = {"sampling.grid": "diffusers", "sampling.steps": 30, "transformer.remat": "full", "transformer.width": 64}
    changed = sora_jax.open_model(models / "pipeline", changes=changes).settings
    assert (changed.sampling.grid, changed.sampling.shift, changed.sampling.steps) == ("diffusers", 5.0, 30)
    assert (changed.transformer.remat, changed.transformer.width) == ("full", 24)
    with pytest.raises(UserError, match="no such key or value"):
        sora_jax.open_model(models / "pipeline", changes={"sampling.stepz": 3})


def test_what_is_said_and_not_heard_is_told(models, caplog):
    """A value that is that of configs/base.py cannot be told from none, and a shape is the model's."""
    changes = {
        "sampling.steps": 20,
        "sampling.frames": 9,
        "transformer.width": 64,
        "sampling.solver": "euler",
        "seed": 0,
    }
    config = base.get_config()
    config.model = str(models / "pipeline")
    config.update_from_flattened_dict(changes)
    warn_of_unheard(config, ())
    assert not caplog.text
    warn_of_unheard(config, changes)
    lost = "sampling.steps 50 and not 20, sampling.frames 81 and not 9, transformer.width 24 and not 64"
    assert f"the model has {lost}: its shapes are always its own" in caplog.text
    public = wan_lora.get_config("t2v_1_3b")
    public.model, public.sampling.steps = config.model, 20
    caplog.clear()
    warn_of_unheard(public, ["sampling.steps", "sampling.frames"])
    assert not caplog.text


@pytest.mark.parametrize("command", ["main", "prepare", "plan"])
def test_a_command_tells_what_it_does_not_hear_before_it_begins(python, models, tmp_path, command):
    done = python(
        "-m",
        f"sora_jax.{command}",
        f"--config.model={models / 'pipeline'}",
        "--config.sampling.steps=20",
        "--config.data.source=folder",
        f"--config.data.path={tmp_path / 'none'}",
        "--stage=none" if command == "plan" else f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode == 2
    assert "the model has sampling.steps 50 and not 20" in done.stderr


def test_a_rate_other_than_the_variants_is_of_the_file_alone_and_said(models):
    model = sora_jax.open_model(models / "pipeline")
    asked = [Request(prompt=("a",), size="16x16", frames=5, fps=fps) for fps in (None, 16.0, 24.0)]
    assert [read_job(one, model.limits).fps for one in asked] == [16, 16, 24]
    assert "frames per second" not in model.described(model.solver(), asked[:2])
    assert "24 frames per second, as asked for: the model counts frames, of which 16 were" in model.described(
        model.solver(), asked
    )
    text = {"text_BKE": np.zeros((1, public_model.TEXT_DIM))}
    for fps in (16.0, 24.0):
        row = pack_layout(model.settings).row()
        row.put(sample=0, grid=(3, 1, 1), fps=fps, text=text, tokens_LP=None)
        assert row.arrays["position_BL3"][:3, 0].tolist() == [0, 1, 2]


def test_the_usual_video_of_a_large_model_needs_the_memory_of_a_chunk(models):
    """By the estimate of a whole window, 81 frames would be refused wherever there are not hundreds of gigabytes."""
    model = sora_jax.open_model(models / "pipeline")
    limits = dataclasses.replace(model.limits, pixel_bytes=16.0 * 384, room=32e9)
    assert read_job(Request(prompt=("a",)), limits).size == (480, 832)
    with pytest.raises(UserError, match="no held-out clips"):
        model.evaluate()


def test_latents_of_a_public_model_have_its_statistics(models):
    found = given_statistics(sora_jax.open_model(models / "pipeline").settings)
    np.testing.assert_array_equal(found, public_statistics(16))


def test_a_negative_prompt_is_the_models_own_until_one_is_given(models):
    limits = sora_jax.open_model(models / "pipeline").limits
    given = {None: VARIANTS["t2v_1_3b"].negative, "": "", "a square": "a square"}
    for asked, meant in given.items():
        request = Request(prompt=("a circle",), negative=asked, size="16x16", frames=5)
        assert read_job(request, limits).negative == meant


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task=loop", "--video=CLIP"], "Wan2.1-T2V-1.3B was trained without known tokens .* which loop needs"),
        (["--prompt=a", "--frames=85"], "which text of more than 81 frames needs"),
        (["--prompt=a", "--frames=6"], "6"),
        (["--prompt=a", "--size=20x16"], "20"),
    ],
)
def test_what_a_variant_cannot_do_is_refused_by_name(models, arguments, said):
    limits = sora_jax.open_model(models / "pipeline").limits
    clip = np.zeros((9, 16, 16, 3), np.uint8)
    options = dict(one.removeprefix("--").split("=") for one in arguments)
    request = Request(
        task=options.get("task", "text"),
        prompt=(options["prompt"],) if "prompt" in options else (),
        video=(options["video"],) if "video" in options else (),
        size=options.get("size", "16x16"),
        frames=int(options["frames"]) if "frames" in options else None,
    )
    with pytest.raises(UserError, match=said):
        read_job(request, limits, lambda name, **_: (clip, 16.0))


def test_a_folder_without_its_encoder_is_refused_in_a_sentence(python, models, tmp_path):
    folder = shutil.copytree(models / "experts", tmp_path / "Wan2.2-T2V-A14B")
    (folder / "umt5_xxl_fp16.safetensors").unlink()
    (folder / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"PK\x03\x04")
    done = python("-m", "sora_jax.sample", f"--model={folder}", "--prompt=a", "--frames=5")
    assert done.returncode == 2
    assert re.search(r"enc-bf16\.pth is a pickle.*put text_encoder/ of the model's diffusers folder", done.stderr)
    done = python("-m", "sora_jax.sample", f"--workdir={tmp_path}", "--grid=wan", "--prompt=a")
    assert done.returncode == 2
    assert "--grid is for --model" in done.stderr


def test_what_a_config_for_public_models_says_stays_also_where_the_base_config_says_so(models):
    config = wan_lora.get_config("t2v_1_3b")
    config.model, config.data.path = f"{models / 'pipeline'}#t2v_1_3b", str(models)
    config.sampling.size, config.sampling.steps = base.get_config().sampling.size, base.get_config().sampling.steps
    sampling = read_settings(config).sampling
    assert (sampling.size, sampling.steps) == ((32, 32), 20)
    assert (sampling.grid, sampling.shift, sampling.fps) == ("wan", 5.0, 16.0)
