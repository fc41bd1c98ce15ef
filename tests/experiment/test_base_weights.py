"""Stages that begin with the files of a public model: two experts, an adapter each, and what lies in the workdir."""

import shutil

import jax
import numpy as np
import pytest

from sora_jax.checkpoints.frozen import FROZEN
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import make_mesh
from sora_jax.experiment import loading
from sora_jax.experiment.base_weights import public_weights
from sora_jax.experiment.kinds import training
from sora_jax.experiment.preflight import check_start
from sora_jax.experiment.run import run
from sora_jax.experiment.session import open_session
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.stages import stages_before
from sora_jax.nn.lora import is_factor
from sora_jax.train.metrics import read_metrics
from sora_jax.train.workdir import Workdir
from tests.public_model import adapter_config, write_diffusers

RANGES = {"high": (0.875, 1.0), "low": (0.0, 0.875)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_diffusers(tmp_path_factory.mktemp("models") / "tiny", (5, 6), boundary_ratio=0.875)


@pytest.fixture(scope="module")
def config(folder, toy_config):
    config = adapter_config(toy_config(), f"{folder}#t2v_a14b", RANGES, steps=2)
    config.diffusion.loss_bands = (0.5,)
    config.log.samples_per_stage, config.log.every_steps, config.sampling.steps = 1, 1, 2
    config.sampling.prompts, config.sampling.window = ("a red circle moves",), 5
    return config


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "experts"
    run(config, path, until="diffusion")
    return Workdir(path)


def loaded(settings, workdir, name):
    """Returns (parameters of the end of a stage, those that lie in the files of its expert, in bfloat16)."""
    mesh = make_mesh(settings.mesh, jax.devices()[:1])
    source = public_weights(settings, list(RANGES).index(name), frozen_dtype="bfloat16")
    assert source is not None
    shapes = training(settings)[name].maker(settings, name, mesh).abstract_params()
    places = {one: value.sharding for one, value in shapes.items()}
    params, _ = loading.load_weights(workdir, name, shapes, track="width_0.1", source=source, places=places)
    kept = {n: jax.ShapeDtypeStruct(v.shape, source.dtype, sharding=places[n]) for n, v in shapes.items()}
    return params, source.load({one: value for one, value in kept.items() if not is_factor(one)})


@pytest.mark.slow
def test_each_expert_is_trained_from_its_own_files_in_its_own_range(config, workdir):
    settings = read_settings(config)
    assert [stages_before(settings, name) for name in RANGES] == [[], []]
    bands = {name: set() for name in RANGES}
    for line in read_metrics(workdir.path):
        bands[line["stage"]] |= {key for key in line if key.startswith("loss_")}
    assert bands == {"high": {"loss_0.875_1"}, "low": {"loss_0_0.5", "loss_0.5_0.875"}}
    for name in RANGES:
        assert not (workdir.checkpoints(name) / FROZEN).exists(), "the model is not written once more"
        params, files = loaded(settings, workdir, name)
        jax.tree.map(np.testing.assert_array_equal, {one: params[one] for one in files}, files)
        factors = {one: value for one, value in params.items() if one not in files}
        assert len(factors) == 20, "two of each map of a block"
        assert all(np.any(value) for value in factors.values()), "also what began as zeros"


@pytest.mark.slow
def test_samples_lie_beside_those_without_the_adapter(workdir):
    for name in RANGES:
        shown = {path.name for path in (workdir.path / "samples" / name / "000002").iterdir()}
        assert shown == {"prompt_00.gif", "prompt_00_without.gif"}


def test_a_config_of_its_own_rows_and_encoder_takes_the_files_of_the_model(config, folder):
    """Also where it names the encoder without files, as the configs of public models do, and has the rows of base."""
    asked = config.copy_and_resolve_references()
    asked.text.encoder = "umt5"
    settings = read_settings(asked)
    assert settings.text.weights == str(folder / "text_encoder")
    assert settings.packing.rows == read_settings(config).packing.rows == 8


def test_a_stage_of_the_same_expert_goes_on_from_the_one_before(config):
    longer = config.copy_and_resolve_references()
    with longer.unlocked():
        longer.stages.more = longer.stages.high
    longer.run = ("prepare", "high", "low", "more")
    assert stages_before(read_settings(longer), "more") == ["high"]


def test_a_range_of_both_experts_is_refused(config):
    wrong = config.copy_and_resolve_references()
    wrong.stages.high.noise_range = (0.5, 1.0)
    said = r"stages.high.noise_range \(0.5, 1.0\): levels 0.5 to 1 are of both experts of Wan2.2-T2V-A14B: give each"
    settings = read_settings(wrong)
    with pytest.raises(UserError, match=said):
        check_start(settings, jax.devices()[:1], samples=False)


@pytest.mark.slow
def test_a_run_goes_on_with_the_model_elsewhere_and_with_no_other(config, folder, workdir, tmp_path):
    moved = config.copy_and_resolve_references()
    shutil.copytree(folder, tmp_path / "moved")
    shutil.copytree(workdir.path, tmp_path / "run")
    moved.model = f"{tmp_path / 'moved'}#t2v_a14b"
    run(moved, tmp_path / "run", until="diffusion")
    loaded(read_settings(moved), Workdir(tmp_path / "run"), "low")
    write_diffusers(tmp_path / "other", (7, 6), boundary_ratio=0.875)
    moved.model = f"{tmp_path / 'other'}#t2v_a14b"
    with pytest.raises(UserError, match=r"the weights in .*other.* have the fingerprint .* give the model that they"):
        loaded(read_settings(moved), Workdir(tmp_path / "run"), "high")


@pytest.mark.slow
def test_a_run_samples_with_both_experts_and_says_which_is_not_trained(config, workdir, tmp_path):
    session = open_session(workdir.path)
    small = {"size": config.sampling.size, "frames": 5, "steps": 4}
    (clip,) = session.sample("a red circle moves right", **small)
    assert clip.shape[0] == 5
    assert session.models.facts() == {"stage": "high, low", "step": 2, "weights": "ema"}
    shutil.copytree(workdir.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "high")
    with pytest.raises(UserError, match="no checkpoint of the expert of high noise levels yet"):
        open_session(tmp_path / "run").sample("a red circle moves right", **small)
