"""Averages of any width, made after training: of what two stages kept, on one device and on several."""

import dataclasses
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.checkpoints.retention import CheckpointConfig
from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.experiment.evaluation import check_asked
from sora_jax.experiment.loading import check_ema
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.posthoc import load_average
from sora_jax.experiment.settings import read_settings
from sora_jax.train.snapshots import AVERAGES, Snapshots, find_snapshots
from sora_jax.train.state import EmaConfig, track_name, update_ema
from sora_jax.train.workdir import Workdir

WIDTHS, TRACKED = (0.1, 0.05), 0.08
POLICY = CheckpointConfig(
    every_steps=1, every_minutes=None, keep=9, keep_best=0, keep_every_steps=None, keep_every_hours=None
)
STEPS, MOMENTS = {"images": 300, "videos": 500}, 8
SHAPES = {"blocks.kernel": (4, 6), "blocks.bias": (6,)}


@pytest.fixture(scope="module")
def settings(toy_config):
    config = toy_config()
    config.ema.widths, config.ema.snapshots = WIDTHS, MOMENTS
    return read_settings(config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns (workdir of two stages on one clock, their last weights, the average of width `TRACKED`)."""
    workdir = Workdir(tmp_path_factory.mktemp("run"))
    config = EmaConfig(widths=(*WIDTHS, TRACKED), snapshots=None)
    update = jax.jit(lambda ema, params, updates: update_ema(ema, params, updates, config))
    rng, total, updates = np.random.default_rng(0), sum(STEPS.values()), 0
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    ema = {track_name(width): params for width in config.widths}
    for stage, steps in STEPS.items():
        kept = Snapshots(workdir.checkpoints(stage), {steps * (i + 1) // MOMENTS for i in range(MOMENTS)})
        for step in range(1, steps + 1):
            updates += 1
            size = 0.02 * (1 - 0.98 * updates / total)
            params = {n: v + size * rng.normal(size=v.shape).astype(np.float32) for n, v in params.items()}
            ema = update(ema, params, jnp.int32(updates))
            both = {track_name(width): ema[track_name(width)] for width in WIDTHS}
            state = types.SimpleNamespace(ema=both, updates=jnp.int32(updates))
            kept.save(step, state, {})
        with Checkpointer(workdir.checkpoints(stage), POLICY) as saver:
            saver.save(steps, {"ema": both, "updates": jnp.int32(updates)}, {}, {}, settle=True)
    return workdir, params, jax.device_get(ema[track_name(TRACKED)])


def on_one_device():
    place = SingleDeviceSharding(jax.local_devices()[0])
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place) for name, shape in SHAPES.items()}


def distance(one, other):
    return np.sqrt(sum(np.sum(np.square(np.asarray(one[name]) - other[name])) for name in SHAPES))


def test_the_average_is_that_which_was_tracked(trained, settings):
    workdir, last, tracked = trained
    made, step = load_average(workdir, settings, "videos", on_one_device(), width=TRACKED)
    assert step == STEPS["videos"]
    assert {name: (value.shape, value.dtype) for name, value in made.items()} == {
        name: (shape, np.float32) for name, shape in SHAPES.items()
    }
    assert distance(made, tracked) < 1e-2 * distance(last, tracked)


def test_what_an_earlier_stage_kept_makes_wide_averages_right(trained, settings):
    workdir, _, _ = trained
    stages = {**settings.stages, "videos": dataclasses.replace(settings.stages["videos"], start_from="elsewhere")}
    with pytest.raises(UserError, match=r"width 0.2 after 800 updates cannot be made .* at 8 moments"):
        load_average(workdir, dataclasses.replace(settings, stages=stages), "videos", on_one_device(), width=0.2)
    load_average(workdir, settings, "videos", on_one_device(), width=0.2)


def test_a_mesh_has_the_same_numbers(trained, settings):
    workdir, _, _ = trained
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, sequence=1, tensor=1), jax.devices()[:4])
    places = {"blocks.kernel": P("fsdp", None), "blocks.bias": P()}
    abstract = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, places[name]))
        for name, shape in SHAPES.items()
    }
    spread, _ = load_average(workdir, settings, "videos", abstract, width=TRACKED)
    alone, _ = load_average(workdir, settings, "videos", on_one_device(), width=TRACKED)
    assert spread["blocks.kernel"].sharding == abstract["blocks.kernel"].sharding
    jax.tree.map(np.testing.assert_array_equal, spread, alone)


def test_a_width_of_the_config_is_read(trained, settings):
    workdir, _, _ = trained
    found, _ = load_average(workdir, settings, "videos", on_one_device(), width=0.05)
    newest = find_snapshots(workdir.checkpoints("videos"))[-1]
    assert newest.updates == sum(STEPS.values())
    again, _ = load_average(
        Workdir(workdir.path), settings, "videos", on_one_device(), width=0.05, step=STEPS["videos"]
    )
    jax.tree.map(np.testing.assert_array_equal, found, again)


def test_what_cannot_be_made_is_said(trained, settings, tmp_path):
    workdir, _, _ = trained
    with pytest.raises(UserError, match=r"--ema=0.5 must be a relative width in \(0, 0.28\)"):
        load_average(workdir, settings, "videos", on_one_device(), width=0.5)
    with pytest.raises(UserError, match=r"--ema=0.08 is the width of an average, and --weights=params are none"):
        check_ema(0.08, "params")
    bare = Workdir(tmp_path)
    with Checkpointer(bare.checkpoints("videos"), POLICY) as saver:
        ema = {track_name(width): {n: jnp.zeros(shape) for n, shape in SHAPES.items()} for width in WIDTHS}
        saver.save(5, {"ema": ema, "updates": jnp.int32(5)}, {}, {}, settle=True)
    with pytest.raises(UserError, match=r"kept no averages .* are of 0.1, 0.05; train with --config.ema.snapshots=16"):
        load_average(bare, settings, "videos", on_one_device(), width=0.08)


def test_averages_that_changed_are_not_used(trained, settings, tmp_path):
    workdir, _, _ = trained
    copy = Workdir(shutil.copytree(workdir.path, tmp_path / "copy"))
    folder = copy.checkpoints("videos") / AVERAGES
    file = max((folder / "62").rglob("*/d/*"), key=lambda path: path.stat().st_size)
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)
    with pytest.raises(StorageError, match="none of the 1 checkpoints"):
        load_average(copy, settings, "videos", on_one_device(), width=TRACKED)


def test_a_run_is_opened_with_an_average_of_its_width(toy_workdir, toy_config):
    own = read_settings(toy_config())
    plain, asked = (RunModels(Workdir(toy_workdir), own, ema=width) for width in (None, own.ema.widths[0]))
    jax.tree.map(np.testing.assert_array_equal, plain.params, asked.params)
    assert "ema" not in plain.facts()
    assert asked.facts()["ema"] == own.ema.widths[0]
    with pytest.raises(UserError, match=r"kept no averages to make one of width 0.08 of"):
        _ = RunModels(Workdir(toy_workdir), own, ema=0.08).params
    with pytest.raises(UserError, match=r"--ema=0.08 is of the transformer: the autoencoder has one average"):
        check_asked("autoencoder", None, "ema", ema=0.08)
