"""A trained autoencoder is written for other tools, and a run takes it, or public weights, as given."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from sora_jax.core.errors import UserError
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment.loading import load_codec
from sora_jax.experiment.settings import read_settings
from sora_jax.models.interop.wan_autoencoder import load_wan_autoencoder
from sora_jax.train.workdir import Workdir

# What of the toy run is not as Wan has it.
WAN = (
    "--config=tests/toy.py",
    "--config.autoencoder.patch=1",
    "--config.autoencoder.space_down=(True,True)",
    "--config.autoencoder.shortcuts=False",
    "--config.autoencoder.attention=True",
    "--config.autoencoder.decoder_blocks=2",
    "--config.stages.autoencoder.steps=1",
    "--config.stages.autoencoder.crops.buckets=((5,16,16,8),)",
    "--config.log.samples_per_stage=0",
    "--config.shapes.num_clips=8",
)


@pytest.fixture(scope="module")
def trained(python, tmp_path_factory):
    """Returns the workdir of a run that has trained an autoencoder as Wan could have it."""
    workdir = tmp_path_factory.mktemp("runs") / "wan"
    done = python("-m", "sora_jax.main", *WAN, f"--workdir={workdir}", "--until=autoencoder")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def exported(python, trained, tmp_path_factory):
    """Returns the folders of its weights in both layouts."""
    folders = {layout: tmp_path_factory.mktemp("exported") / layout for layout in ("diffusers", "original")}
    for layout, folder in folders.items():
        done = python(
            "-m",
            "sora_jax.export",
            f"--workdir={trained}",
            f"--output={folder}",
            "--part=autoencoder",
            f"--format={layout}",
        )
        assert done.returncode == 0, done.stderr
        (written,) = folder.glob("*.safetensors")
        assert done.stdout.split() == [str(written)]
    return folders


def codec_of(workdir):
    workdir = Workdir(workdir)
    return load_codec(workdir, read_settings(workdir.config()))


def test_both_layouts_hold_the_average_and_the_statistics(trained, exported):
    codec = codec_of(trained)
    for folder in exported.values():
        (written,) = folder.glob("*.safetensors")
        loaded = load_wan_autoencoder(written, codec.config)
        assert loaded.keys() == codec.params.keys()
        for name, value in codec.params.items():
            np.testing.assert_array_equal(loaded[name], value, err_msg=name)
        config = json.loads((folder / "config.json").read_text())
        assert (config["latents_mean"], config["latents_std"]) == (codec.mean_C.tolist(), codec.scale_C.tolist())
    names = [load_file(next(folder.glob("*.safetensors"))).keys() for folder in exported.values()]
    assert "encoder.conv_in.weight" in names[0]
    assert "encoder.downsamples.0.residual.0.gamma" in names[1]


def test_a_run_prepares_clips_with_given_weights_and_their_statistics(python, trained, exported, tmp_path):
    weights = f"--config.autoencoder.weights={exported['diffusers']}"
    # The shape in the config stays that of the toy run; that of the file replaces it.
    arguments = ("--config=tests/toy.py", WAN[-1], weights, f"--workdir={tmp_path / 'run'}")
    done = python("-m", "sora_jax.prepare", *arguments)
    assert done.returncode == 0, done.stderr
    assert "stage 1 of 1: prepare" in done.stdout
    workdir = Workdir(tmp_path / "run")
    assert workdir.facts()["stages"].keys() == {"prepare"}
    assert not (workdir.path / "latents.json").exists()
    found = PreparedSet(workdir.prepared()).header["autoencoder"]
    assert found == codec_of(tmp_path / "run").fingerprint() == codec_of(trained).fingerprint()


def test_statistics_that_are_not_given_are_measured_first(python, trained, exported, tmp_path):
    file = shutil.copy(exported["original"] / "wan_vae.safetensors", tmp_path)
    arguments = ("--config=tests/toy.py", WAN[-1], f"--config.autoencoder.weights={file}")
    early = python("-m", "sora_jax.prepare", *arguments, f"--workdir={tmp_path / 'run'}", "--process_count=2")
    assert early.returncode == 2
    assert "has no statistics of its latents yet: run main --until=autoencoder first" in early.stderr
    done = python("-m", "sora_jax.main", *arguments, f"--workdir={tmp_path / 'run'}", "--until=autoencoder")
    assert done.returncode == 0, done.stderr
    expected = codec_of(trained)
    found = codec_of(tmp_path / "run")
    np.testing.assert_allclose(found.mean_C, expected.mean_C, atol=1e-5)
    np.testing.assert_allclose(found.scale_C, expected.scale_C, rtol=1e-5)


def test_the_shape_is_that_of_the_file_and_no_stage_trains_one(toy_config, exported):
    config = toy_config()
    config.autoencoder.weights = str(exported["diffusers"])
    settings = read_settings(config)
    assert settings.run == ("prepare", "images", "videos")
    assert settings.autoencoder.attention
    assert settings.autoencoder.decoder_blocks == 2
    config.run = ("autoencoder", "videos")
    with pytest.raises(UserError, match="of kinds diffusion; it must be one of prepare, then any number of diffusion"):
        read_settings(config)
    config.autoencoder.weights = "nowhere.safetensors"
    with pytest.raises(UserError, match=r"nowhere\.safetensors does not exist; give one \.safetensors file"):
        read_settings(config)
    tree = toy_config().to_dict()
    del tree["autoencoder"]["weights"]  # as configs of earlier versions
    assert read_settings(tree) == read_settings(toy_config())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nowhere to write: pass --output=DIR"),
        (["--output=vae", "--format=torch"], "torch"),
        (["--output=vae", "--layout=original"], "--layout is now --part=autoencoder --format: pass that"),
        (["--output={tmp}/vae"], "say what to write: --format=lora, diffusers or original"),
        (["--output={tmp}/vae", "--format=lora"], "has no adapter, as its transformer.lora.rank is None"),
        (
            ["--output={tmp}/vae", "--format=original"],
            "cannot express this transformer: Wan has no pooled_text and",
        ),
        (
            ["--output={tmp}/vae", "--part=autoencoder", "--format=diffusers"],
            "cannot express this autoencoder: attention is False, and the middle of Wan attends; ",
        ),
        (
            ["--output={tmp}/vae", "--format=lora", "--lora=a:0.5"],
            "--lora would change nothing of what --format=lora writes",
        ),
        (
            ["--output={tmp}/vae", "--format=original", "--trigger=a sks dog"],
            "--trigger would change nothing of what --format=original writes",
        ),
        (
            ["--output={tmp}/vae", "--part=autoencoder", "--format=original", "--weights=ema", "--dtype=float32"],
            "--weights and --dtype would change nothing of what --part=autoencoder writes",
        ),
        (["--output={tmp}/vae", "--format=lora", "--workdir={tmp}/none"], "none holds no run (config.json is missing)"),
    ],
)
def test_what_cannot_be_written_is_told(python, toy_workdir, tmp_path, arguments, said):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    done = python("-m", "sora_jax.export", f"--workdir={toy_workdir}", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "vae").exists()
