"""A model that is shown its first frame, from preparation over training to a sample."""

import numpy as np
import pytest

from sora_jax import open_run
from sora_jax.core.errors import UserError
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import write_clip
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment import datasets, loading
from sora_jax.experiment.run import run
from sora_jax.experiment.settings import read_settings
from sora_jax.train.metrics import read_metrics
from sora_jax.train.workdir import Workdir
from sora_jax.video.shown import join, shown_frames
from tests.models.vision.test_clip import WIDTH, folder

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def config(toy_config, toy_workdir, tmp_path_factory):
    """As FLF2V: the first and the last frame, tokens of both, and an embedding of each token's place."""
    config = toy_config()
    config.autoencoder.start_from = str(toy_workdir)
    config.run = ("prepare", "videos")
    config.shapes.num_clips, config.shapes.sides, config.shapes.image_share = 32, ((16, 16),), 0.0
    config.packing.window = 16
    config.transformer.given_channels, config.transformer.image_dim = 8, WIDTH
    config.transformer.image_positions = 20
    config.image_encoder = str(folder(tmp_path_factory.mktemp("image_encoder")))
    stage = config.stages.videos
    stage.steps, stage.mix.images, stage.mix.videos = 2, 0.0, 1.0
    images = tmp_path_factory.mktemp("images")
    for name, image in (("image", IMAGE), ("last_image", 255 - IMAGE)):
        write_clip(images / f"{name}.png", image[None], fps=1)
        config.sampling[name] = str(images / f"{name}.png")
    config.log.samples_per_stage, config.sampling.prompts = 1, ("a red circle",)
    config.optimizer.name, config.sampling.solver = "adamw", "euler"  # they compile faster
    return config


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "shown"
    run(config, path, until="diffusion")
    return Workdir(path)


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
    with pytest.raises(UserError, match="which task text does not give it"):
        open_run(workdir.path).sample("a red circle")


def test_shards_of_another_way_are_refused(config, workdir):
    settings = read_settings(config)
    with pytest.raises(UserError, match="the way in which the model is shown frames changed"):
        PreparedSet.open([workdir.prepared()], {"shown": "another"})
    assert loading.limits_of(settings).shared((16, 16)) == 1, "of the window before its last frame is shown"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transformer.given_channels": 9}, "9 channels beside the noise, and a mask of 4 frames and a latent of 4"),
        ({"transformer.image_dim": 99}, "makes tokens of width 16, and transformer.image_dim is 99"),
    ],
)
def test_what_does_not_go_together_is_refused(config, changes, said):
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=said):
        read_settings(changed)


def test_without_an_image_encoder_the_remedy_is_named(config, workdir):
    changed = config.copy_and_resolve_references()
    changed.image_encoder = None
    changed.sampling.image = changed.sampling.last_image = None
    settings = read_settings(changed)
    assert loading.example_jobs(settings, frames=5) == [], "no image is named to be animated"
    assert settings.shown is not None
    assert settings.shown.tokens == 514, "as that of all public models makes them"
    with pytest.raises(UserError, match=r"--config\.image_encoder=DIR"):
        loading.load_shower(settings, loading.load_codec(workdir, settings))
