"""A stage begins with another run's averaged weights, every parameter of which it finds by name, or is refused."""

import dataclasses
import functools
import json
import logging
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.checkpoints.frozen import FROZEN, load_params, save_frozen
from sora_jax.checkpoints.reading import load_tree
from sora_jax.core.config import to_json
from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.rng import Rngs
from sora_jax.experiment import run, stages
from sora_jax.experiment.init_from import find_source, inherit, take_autoencoder
from sora_jax.experiment.kinds.base import Run
from sora_jax.experiment.recipes import state_maker, train_kind
from sora_jax.experiment.settings import read_settings
from sora_jax.nn.linear import Linear
from sora_jax.train.loop import StopSignal
from sora_jax.train.metrics import SilentWriter
from sora_jax.train.optimizer import OptimizerConfig, make_optimizer
from sora_jax.train.progress import RunProgress
from sora_jax.train.state import EmaConfig, StateMaker
from sora_jax.train.workdir import Workdir
from tests.small import one_device

CONFIG = {"ema": {"widths": [0.05, 0.2]}}


class Model(nnx.Module):
    def __init__(self, key, names=("first", "second"), width=8):
        rngs = Rngs(key)
        for name in names:
            setattr(self, name, Linear(width, 8, axes=("embed", "mlp"), rngs=rngs))


def maker(fsdp: int, widths=(0.1,), **model: Any) -> StateMaker:
    optimizer = OptimizerConfig(name="adamw", b1=0.9, b2=0.95, weight_decay=0.0, clip_norm=1.0)
    mesh = make_mesh(MeshConfig(data=1, fsdp=fsdp, sequence=1, tensor=1), jax.devices()[:fsdp])
    return StateMaker(
        build=functools.partial(Model, **model),
        make_optimizer=functools.partial(make_optimizer, optimizer),
        ema=EmaConfig(widths=widths, snapshots=None),
        mesh=mesh,
    )


@pytest.fixture(scope="module")
def settings(toy_config):
    return read_settings(toy_config())


@pytest.fixture(scope="module")
def source(settings, tmp_path_factory):
    """Steps 4 and 8 of a run with two averages; those of a step are all equal to it, and to half of it."""
    folder = tmp_path_factory.mktemp("other") / "checkpoints" / "videos"
    state = maker(2, widths=(0.05, 0.2)).fresh(jax.random.key(1))
    with Checkpointer(folder, dataclasses.replace(settings.checkpoint, keep=9)) as saver:
        for step in (4, 8):
            first, second = (
                {n: jnp.full_like(v, value) for n, v in state.params.items()} for value in (step, step / 2)
            )
            ema = {"width_0.05": first, "width_0.2": second}
            saver.save(step, dataclasses.replace(state, ema=ema, step=jnp.int32(step)), {}, CONFIG)
    return folder


def stage(settings, source, *rules: str):
    return dataclasses.replace(settings.stages["videos"], start_from=str(source), start_rules=rules)


@pytest.mark.parametrize(("place", "value"), [("", 8.0), ("4", 4.0)])
def test_weights_and_averages_are_the_first_average_there_and_all_else_is_fresh(settings, source, place, value, caplog):
    here = maker(4, widths=(0.1, 0.2))
    with caplog.at_level(logging.INFO):
        state = inherit("videos", stage(settings, source / place), here, jax.random.key(0))
    fresh = here.fresh(jax.random.key(0))
    for params in (state.params, *state.ema.values()):
        assert {float(np.unique(leaf)[0]) for leaf in params.values()} == {value}
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)
    assert [int(count) for count in (state.step, state.updates)] == [0, 0]
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(here.abstract()), strict=True):
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)
    buffers = [leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers), "each may be donated"
    assert f"of step {int(value)} in {source}, 0 of 4 parameters as initialised" in caplog.text


def test_rules_rename_share_and_leave_fresh(settings, source):
    here = maker(1, names=("one", "two", "head"))
    rules = (r"head\..* -> fresh", r"(one|two)\.(.*) -> second.\2")
    state = inherit("videos", stage(settings, source, *rules), here, jax.random.key(0))
    fresh = here.fresh(jax.random.key(0)).params
    for name, leaf in state.params.items():
        expected = fresh[name] if name.startswith("head") else np.full(leaf.shape, 8.0)
        np.testing.assert_array_equal(leaf, expected)
        np.testing.assert_array_equal(state.ema["width_0.1"][name], expected)


@pytest.mark.parametrize(
    ("model", "rules", "said"),
    [
        (
            {"names": ("first", "third")},
            (),
            r"third.bias is not there; third.kernel is not there; say in stages.videos",
        ),
        ({"width": 16}, (), r"first.kernel is float32\[16, 8\], and there float32\[8, 8\]; second.kernel is"),
        ({}, (r"first\.(.*) -> gone.\1",), r"gone.bias, for first.bias, is not there; gone.kernel, for first.kernel,"),
        (
            {},
            (r"first\.kernel -> second.bias",),
            r"first.kernel is float32\[8, 8\], and second.bias there float32\[8\]",
        ),
        ({}, (".*first -> fresh",), "the rule '.*first -> fresh' matches no parameter that an earlier one leaves"),
        ({}, (".* -> fresh", "first.* -> fresh"), "the rule 'first.* -> fresh' matches no parameter that an earlier"),
        ({}, (r"first.* -> \3",), "'first.* -> .*3': invalid group reference 3"),
    ],
)
def test_what_does_not_fit_is_told_all_at_once_before_anything_is_made(
    settings, source, model, rules, said, monkeypatch
):
    def fresh(*_):
        raise AssertionError("a state was made")

    monkeypatch.setattr(StateMaker, "fresh", fresh)
    with pytest.raises(UserError, match=said):
        inherit("videos", stage(settings, source, *rules), maker(1, **model), jax.random.key(0))


def test_places_without_a_checkpoint_are_told(settings, source, tmp_path):
    params = maker(1).abstract().params
    with pytest.raises(
        UserError, match=r"there is no checkpoint in .*: give a folder like runs/other/checkpoints/videos"
    ):
        find_source("videos", stage(settings, tmp_path / "none"), params)
    with pytest.raises(UserError, match="there is no checkpoint in"):
        find_source("videos", stage(settings, source / "7"), params)
    directory = epath.Path(tmp_path / "12")
    directory.mkdir()
    (directory / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="12 is no checkpoint of a run"):
        find_source("videos", stage(settings, tmp_path), params)


def test_damaged_weights_are_not_taken(settings, source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "videos")
    (copy / "8" / "added").write_text("x")
    state = inherit("videos", stage(settings, copy), maker(1), jax.random.key(0))
    assert float(state.params["first.bias"][0]) == 4.0
    with pytest.raises(StorageError, match="can be trusted"):
        inherit("videos", stage(settings, copy / "8"), maker(1), jax.random.key(0))


def a_run(config: ConfigDict, path) -> Run:
    settings = read_settings(config)
    mesh = make_mesh(settings.mesh, jax.devices()[:1])
    return Run(
        settings=settings,
        workdir=Workdir(path),
        mesh=mesh,
        metrics=SilentWriter(),
        collections=[],
        stop=StopSignal(),
        progress=RunProgress([]),
    )


def save_stage(config: ConfigDict, name: str, folder):
    """Writes a fresh state of a stage as its checkpoint of step 1; returns it."""
    settings = read_settings(config)
    here = state_maker(settings, name, make_mesh(settings.mesh, jax.devices()[:1]))
    state = here.fresh(jax.random.key(7))
    with Checkpointer(folder, settings.checkpoint) as saver:
        saver.save(1, state, {}, json.loads(to_json(config)))
    return state


@one_device()
def test_stages_of_a_run_begin_with_what_their_config_names(toy_config, tmp_path):
    """The generator with a new width of its time embedding, the autoencoder with a discriminator that is new."""
    generator = save_stage(toy_config(), "videos", tmp_path / "generator")
    autoencoder = save_stage(toy_config(), "autoencoder", tmp_path / "autoencoder")
    config = toy_config()
    config.stages.images.start_from = str(tmp_path / "generator")
    config.stages.autoencoder.start_from = str(tmp_path / "autoencoder")
    config.stages.autoencoder.start_rules = (r"discriminator\..* -> fresh",)
    config.stages.autoencoder.adversarial = 0.05
    this_run = a_run(config, tmp_path / "run")
    stages._check_sources(this_run)
    config.diffusion.path.prediction = "clean"
    with pytest.raises(UserError, match=r"outputs velocity and .* clean: pass --config.diffusion.path.prediction=vel"):
        stages._check_sources(a_run(config, tmp_path / "other"))
    begun = train_kind(this_run.settings, "images").begin(this_run, "images", lambda: None)
    jax.tree.map(np.testing.assert_array_equal, begun.params, generator.params)
    begun = train_kind(this_run.settings, "autoencoder").begin(this_run, "autoencoder", lambda: None)
    assert any(name.startswith("discriminator.") for name in begun.params)
    for name, leaf in autoencoder.params.items():
        np.testing.assert_array_equal(begun.params[name], leaf)


@one_device()
def test_adapters_of_the_other_run_are_taken_as_they_were_trained_or_the_stage_is_refused(toy_config, tmp_path):
    def with_lora(**lora):
        config = toy_config()
        config.stages.images.start_from = str(tmp_path / "adapters")
        config.transformer.lora.update(lora)
        return a_run(config, tmp_path / "run")

    config = toy_config()
    config.transformer.lora.update(rank=2, alpha=4.0)
    config.stages.images.update(start_from="weights", trainable=".*")
    save_stage(config, "images", tmp_path / "adapters")
    stages._check_sources(with_lora(rank=2, alpha=4.0))
    with pytest.raises(UserError, match=r"multiplied by 2, and .* by 1: pass --config.transformer.lora.alpha=4$"):
        stages._check_sources(with_lora(rank=2))
    for lora in ({}, {"rank": 2, "alpha": 4.0, "targets": "mlp_in"}):
        with pytest.raises(UserError, match=r"attn1.*lora_a.* give transformer.lora .*'rank': 2.* or start from"):
            stages._check_sources(with_lora(**lora))


@one_device()
def test_a_stage_with_another_optimizer_keeps_weights_and_averages_and_begins_with_new_moments(toy_config, tmp_path):
    config = toy_config()
    config.stages.videos.optimizer.name = "adamw"
    this_run = a_run(config, tmp_path / "run")
    end = save_stage(config, "images", this_run.workdir.checkpoints("images"))
    before = functools.partial(stages.end_before, this_run, "videos")
    begun = train_kind(this_run.settings, "videos").begin(this_run, "videos", before)
    jax.tree.map(np.testing.assert_array_equal, (begun.params, begun.ema), (end.params, end.ema))
    here = state_maker(this_run.settings, "videos", this_run.mesh)
    assert jax.tree.structure(begun) == jax.tree.structure(here.abstract()) != jax.tree.structure(end)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(begun.opt_state))
    assert stages.end_before(this_run, "images") is None


def test_a_run_does_not_begin_with_a_source_that_does_not_fit(toy_config, tmp_path):
    save_stage(toy_config(), "autoencoder", tmp_path / "autoencoder")
    config = toy_config()
    config.stages.videos.start_from = str(tmp_path / "autoencoder")
    with pytest.raises(UserError, match=r"stages.videos cannot start from .*; and \d+ more; say in"):
        run.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.fixture
def trained(toy_config, settings, tmp_path):
    """A run with an autoencoder that is only a few numbers, and what its config says of it."""
    other = Workdir(tmp_path / "other")
    with other:
        other.claim(toy_config())
        state = {"ema": {"width_0.1": {"w": jnp.arange(3.0)}}}
        with Checkpointer(other.checkpoints("autoencoder"), settings.checkpoint) as saver:
            saver.save(8, state, {}, CONFIG)
        other.write_json("latents.json", {"stage": "autoencoder", "mean": [1.0], "scale": [2.0]})
    return other


def test_an_autoencoder_is_copied_once_with_its_statistics(trained, settings, tmp_path):
    here = Workdir(tmp_path / "here")
    with here:
        take_autoencoder(here, settings.autoencoder, str(trained.path))
        found = here.read_json("latents.json")
        assert (found["mean"], found["scale"], found["track"]) == ([1.0], [2.0], "width_0.1")
        shutil.rmtree(trained.path)
        take_autoencoder(here, settings.autoencoder, str(trained.path))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {"ema": {found["track"]: {"w": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=place)}}}
    restored = load_tree(here.checkpoints(found["stage"]), wanted)
    assert restored.step == 8
    np.testing.assert_array_equal(restored.state["ema"]["width_0.1"]["w"], np.arange(3.0))


def test_an_autoencoder_is_copied_with_what_its_last_stage_froze(trained, settings, tmp_path):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    here, stage = Workdir(tmp_path / "here"), trained.checkpoints("autoencoder")
    note = save_frozen(stage, {"v": jnp.ones(2)}, CONFIG)
    with Checkpointer(stage, settings.checkpoint) as saver:
        saver.save(16, {"ema": {"width_0.1": {"w": jnp.arange(3.0)}}}, {FROZEN: note}, CONFIG)
    with here:
        take_autoencoder(here, settings.autoencoder, str(trained.path))
        shutil.rmtree(trained.path)
        folder = here.checkpoints(here.read_json("latents.json")["stage"])
    wanted = {name: jax.ShapeDtypeStruct((size,), jnp.float32, sharding=place) for name, size in (("w", 3), ("v", 2))}
    params, step = load_params(folder, "ema/width_0.1", wanted)
    assert step == 16
    jax.tree.map(np.testing.assert_array_equal, params, {"w": np.arange(3.0), "v": np.ones(2)})


def test_an_autoencoder_that_is_not_there_or_another_is_refused(trained, settings, tmp_path):
    here, wider = Workdir(tmp_path / "here"), dataclasses.replace(settings.autoencoder, width=16)
    with here:
        with pytest.raises(UserError, match=r"has another autoencoder than this config \(width: 8 -> 16\): give"):
            take_autoencoder(here, wider, str(trained.path))
        with pytest.raises(UserError, match=r"holds no run"):
            take_autoencoder(here, wider, str(tmp_path / "nowhere"))
        step = trained.checkpoints("autoencoder") / "8"
        (step / "config" / "metadata").write_text("{}")
        with pytest.raises(StorageError, match="can be trusted"):
            take_autoencoder(here, settings.autoencoder, str(trained.path))
        (trained.path / "latents.json").unlink()
        with pytest.raises(UserError, match=r"has trained no autoencoder to the end: name a run that has"):
            take_autoencoder(here, settings.autoencoder, str(trained.path))
        assert not (here.path / "latents.json").exists()
