"""A model that is shown its first frame, from preparation over training to a sample."""

import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sora_jax
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import make_mesh
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import write_clip
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment import datasets, generator_evaluation, loading
from sora_jax.experiment.programs import sampling_program
from sora_jax.experiment.run import run
from sora_jax.experiment.sample_prompts import configured_examples
from sora_jax.experiment.settings import read_settings
from sora_jax.generate.job import read_job
from sora_jax.generate.request import Request
from sora_jax.models.interop.wan import save_wan
from sora_jax.train.metrics import read_metrics
from sora_jax.train.workdir import Workdir
from sora_jax.video.shown import ShownConfig, join, shown_frames
from tests import public_model
from tests.models.vision.test_clip import WIDTH
from tests.models.vision.test_clip import folder as tower
from tests.small import one_device

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
SHOWN = {"given_channels": 20, "image_dim": WIDTH, "image_positions": 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """As FLF2V: the first and the last frame, tokens of both, and an embedding of each token's place."""
    root = public_model.write_diffusers(tmp_path_factory.mktemp("models") / "shown", image_encoder=["transformers", ""])
    shutil.rmtree(root / "transformer")
    save_wan(root / "transformer", public_model.transformer_params(7, **SHOWN), public_model.shape_of(**SHOWN))
    (root / "image_encoder").mkdir()
    tower(root / "image_encoder")
    return root


@pytest.fixture(scope="module")
def config(toy_config, model, tmp_path_factory):
    config = toy_config()
    config.model = str(model)
    config.run = ("prepare", "videos")
    config.shapes.num_clips, config.shapes.sides, config.shapes.image_share = 16, ((16, 16),), 0.0
    config.packing.window, config.packing.segments, config.packing.rows = 64, 4, 16
    stage = config.stages.videos
    stage.steps, stage.mix.images, stage.mix.videos = 2, 0.0, 1.0
    images = tmp_path_factory.mktemp("images")
    for name, image in (("image", IMAGE), ("last_image", 255 - IMAGE)):
        write_clip(images / f"{name}.png", image[None], fps=1)
        config.sampling[name] = str(images / f"{name}.png")
    config.log.samples_per_stage, config.sampling.prompts = 1, ("a red circle",)
    config.optimizer.name = "adamw"  # it compiles faster
    return config


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "shown"
    with one_device():
        run(config, path, until="diffusion")
    return Workdir(path)


@pytest.mark.slow
def test_shards_hold_what_training_shows(config, workdir):
    settings, prepared = read_settings(config), PreparedSet(workdir.prepared())
    sample = prepared[0]
    assert sample.shown_THWC is not None
    assert sample.shown_THWC.shape == sample.latent_THWC.shape
    assert sample.image_ME is not None
    assert sample.image_ME.shape == (20, WIDTH)
    # The first frame alone is the first latent frame, and behind it grey is not what was there.
    np.testing.assert_allclose(sample.shown_THWC[0], sample.latent_THWC[0], atol=0.05)
    assert np.abs(sample.shown_THWC[1:] - sample.latent_THWC[1:]).max() > 0.1
    with datasets.PackedBatches(prepared, settings, mix=settings.stages["videos"].mix).batches(0) as batches:
        pack = next(batches)
    first_L = pack["segment_BL"][0] == 1
    shown = prepared[int(pack["sample_BS"][0, 0])]
    assert shown.shown_THWC is not None
    given = join(shown.shown_THWC, shown_frames(5, last=True), stride=4)
    assert np.sort(pack["given_BLC"][0, first_L].ravel()).tolist() == np.sort(given.ravel()).tolist()
    assert (pack["image_segment_BM"][0] == 1).sum() == 20


def test_it_trains_and_animates(config, workdir):
    lines = [line for line in read_metrics(workdir.path) if line.get("stage") == "videos" and "loss" in line]
    assert lines
    assert np.isfinite([line["loss"] for line in lines]).all()
    (clip,) = (workdir.path / "samples/videos/000002").glob("*.gif")
    assert read_clip(clip)[0].shape == (5, 16, 16, 3)


def test_a_public_model_says_what_it_must_be_shown(model):
    opened = sora_jax.open_model(model)
    assert opened.settings.image_encoder == str(model / "image_encoder")
    assert opened.limits.shown == ShownConfig(channels=20, last="must", image_tokens=10, image_width=WIDTH)
    for asked, said in (({}, "which task text does not give it"), ({"task": "animate", "image": "a"}, "--last_image")):
        with pytest.raises(UserError, match=said):
            read_job(Request(prompt=("a red circle",), **asked), opened.limits, lambda *_, **__: (IMAGE[None], 1.0))


def test_shards_of_another_way_are_refused(config, workdir):
    settings = read_settings(config)
    with pytest.raises(UserError, match="the way in which the model is shown frames changed"):
        PreparedSet.open([workdir.prepared()], {"shown": "another"})
    assert loading.limits_of(settings).shared((16, 16)) == 1, "of the window before its last frame is shown"


def test_what_does_not_go_together_is_refused(toy_config, config):
    changed = toy_config()
    changed.transformer.given_channels = 9
    with pytest.raises(UserError, match="given 9 channels beside the noise, and a mask of 4 frames and a latent of 4"):
        read_settings(changed)
    changed.transformer.given_channels, changed.transformer.image_dim = 8, 99
    changed.image_encoder = config.model + "/image_encoder"
    with pytest.raises(UserError, match=r"makes tokens of width 16, and transformer\.image_dim is 99"):
        read_settings(changed)


def test_without_an_image_encoder_or_an_image_the_remedy_is_named(toy_config):
    config = toy_config()
    config.transformer.given_channels, config.transformer.image_dim, config.transformer.image_positions = 8, 9, 514
    settings = read_settings(config)
    assert settings.shown is not None
    assert settings.shown.tokens == 514, "as that of all public models makes them"
    assert loading.example_jobs(settings, configured_examples(settings), frames=5) == [], (
        "no image is named to be animated"
    )
    assert generator_evaluation.prompt_sets(settings) == {}, "no prompt alone is judged"
    assert generator_evaluation.prompt_sets(read_settings(toy_config()))
    codec: Any = SimpleNamespace()
    with pytest.raises(UserError, match=r"--config\.image_encoder=DIR"):
        loading.load_shower(settings, codec)


def test_a_plan_has_what_is_shown(config):
    settings = read_settings(config)
    planned = sampling_program(settings, make_mesh(settings.mesh))
    assert planned.held["batch"].pack["given_BLC"].shape[1:] == (settings.packing.tokens, 80)
    assert planned.held["batch"].pack["image_BME"].shape[1:] == (settings.packing.segments * 20, WIDTH)
