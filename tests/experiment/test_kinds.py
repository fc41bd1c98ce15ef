"""A third kind of stage, defined here alone, runs, stops, goes on, is planned, replayed, checked and reported."""

import ast
import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import base
from sora_jax.checkpoints.reading import load_tree
from sora_jax.core import stop
from sora_jax.core.errors import Preempted, UserError
from sora_jax.core.mean import Mean
from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import batch_part
from sora_jax.data.crops import CropConfig
from sora_jax.experiment import activations, run
from sora_jax.experiment.audit import checkpoint_faults
from sora_jax.experiment.datasets import PixelBatches, open_collections
from sora_jax.experiment.kinds import KINDS, names_until
from sora_jax.experiment.kinds.base import Run, TrainKind
from sora_jax.experiment.preflight import check_start
from sora_jax.experiment.programs import StepBatch
from sora_jax.experiment.recipes import recipe_of, state_maker
from sora_jax.experiment.replay import replay
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.speed import CONVOLUTIONS_TRAINED
from sora_jax.experiment.stage_settings import TrainStage
from sora_jax.nn.linear import Linear
from sora_jax.planning import plans, steps
from sora_jax.train import progress
from sora_jax.train.metrics import SilentWriter, read_metrics
from sora_jax.train.progress import RunProgress
from sora_jax.train.workdir import Workdir

ROOT = Path(__file__).parents[2]
STEPS, STOPPED = 8, 4
LUMA_3 = np.array([0.299, 0.587, 0.114], np.float32)


# The whole of a new kind: a dataclass, a class, and a row in the table (docs/extending.md).


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrightnessStage(TrainStage):
    """Trains a model that tells how bright a window is."""

    trains = "brightness"
    reads_clips = True

    crops: CropConfig


class Brightness(nnx.Module):
    """One number for the mean colour of a clip."""

    def __init__(self, key: jax.Array):
        self.weigh = Linear(3, 1, axes=("embed", None), rngs=Rngs(key))

    def __call__(self, colour_B3: jax.Array) -> jax.Array:
        return self.weigh(colour_B3)[:, 0]


def brightness_error(model, batch, key):
    """Returns the squared error on colours that a little noise was added to."""
    colour_B3 = jnp.mean(batch["clip_BTHWC"].astype(jnp.float32) / 255, axis=(1, 2, 3))
    noisy_B3 = colour_B3 + 0.01 * jax.random.normal(key, colour_B3.shape)
    return Mean.of(jnp.square(model(noisy_B3) - colour_B3 @ LUMA_3)), {"bright": Mean.of(colour_B3 @ LUMA_3)}


class BrightnessKind(TrainKind[BrightnessStage]):
    """A toy."""

    stage = BrightnessStage
    key = "brightness parameters"
    compiling = (2.0, 1.0)

    def build(self, settings, name, key):
        return Brightness(key)

    def objective(self, settings, name):
        return brightness_error

    def stream(self, run, name):
        crops = self.of(run.settings, name).crops
        return PixelBatches(run.fitted, crops, seed=run.settings.seed, part=batch_part(run.mesh))

    def batches(self, settings, name, *, segment_tokens):
        ((frames, height, width, clips),) = self.of(settings, name).crops.buckets
        return [
            StepBatch(
                what=f"a bucket of stages.{name} has {clips} clips",
                size=clips,
                shapes={"clip_BTHWC": jax.ShapeDtypeStruct((clips, frames, height, width, 3), jnp.uint8)},
                ways=lambda mesh, params: activations.of_clips(mesh, params, clips=clips),
                flops=6.0 * clips * 3,
                recomputed=0.0,
                title="",
                facts={"clips": clips},
            )
        ]

    def step_seconds(self, settings, name, costs):
        (batch,) = self.batches(settings, name, segment_tokens=1)
        return costs.speed.seconds(batch.flops, CONVOLUTIONS_TRAINED)

    def show(self, run, name):
        def show(state, step):
            kernel_31 = np.asarray(state.params["weigh.kernel"])
            grey_31 = np.clip(255 * kernel_31, 0, 255).astype(np.uint8)
            pixels_THWC = np.tile(grey_31[None, :, :, None], (1, 4, 16, 3))
            sample_log = run.sample_log(name, step)
            sample_log.clip("weights", pixels_THWC, 1.0)
            sample_log.words({"weights": "how much red, green and blue weigh"})

        return show


def add_stage(config: ConfigDict, **changes) -> ConfigDict:
    """Adds a stage of that kind to the end of a run."""
    stage = base.autoencoder_stage(
        steps=STEPS,
        schedule=base.schedule(0.05, warmup_steps=1, decay_share=0.5, final_share=0.1),
        buckets=((5, 16, 16, 8),),
    )
    with stage.unlocked():
        del stage.adversarial, stage.freeze
    stage.update({"kind": "brightness", **changes})
    stage.optimizer.name = "adamw"
    with config.unlocked():
        config.stages.brightness = stage
    config.run = (*config.run, "brightness")
    return config


@pytest.fixture(scope="module", autouse=True)
def _row():
    """Adds the row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "brightness", BrightnessKind())
        yield


@pytest.fixture(scope="module")
def config(toy_config):
    return add_stage(toy_config())


@pytest.fixture(scope="module")
def settings(config):
    return read_settings(config)


@pytest.fixture(scope="module")
def workdirs(toy_workdir, config, tmp_path_factory):
    """Returns the toy run with the new stage at its end, and a run of that stage alone that was stopped in between."""
    update, stopped = RunProgress.update, []

    def update_and_stop(shown: RunProgress, done: int, facts: str = "") -> None:
        update(shown, done, facts)
        if done == STOPPED and not stopped:
            stopped.append(done)
            os.kill(os.getpid(), signal.SIGTERM)

    at_once, in_two = (tmp_path_factory.mktemp("kinds") / name for name in ("at_once", "in_two"))
    shutil.copytree(toy_workdir, at_once)
    for stage in ("autoencoder", "images"):
        shutil.rmtree(at_once / "checkpoints" / stage)
    run.run(config, at_once, until="brightness")
    alone = config.copy_and_resolve_references()
    alone.run = ("brightness",)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress.RunProgress, "update", update_and_stop)
        patch.setattr(stop, "PATIENCE", 900.0)
        with pytest.raises(Preempted, match=f"step {STOPPED + 1} of brightness is saved"):
            run.run(alone, in_two)
    assert "brightness" not in json.loads((in_two / "run.json").read_text())["stages"]
    run.run(alone, in_two)
    return at_once, in_two


@pytest.fixture
def reopened(settings, workdirs):
    """Returns the run as a replay opens it."""
    return Run(
        settings=settings,
        workdir=Workdir(workdirs[0]),
        mesh=check_start(settings),
        metrics=SilentWriter(),
        collections=open_collections(settings),
        stop=stop.StopSignal(),
        progress=RunProgress([]),
    )


def test_it_learns_and_an_interrupted_run_ends_with_the_same_bits(settings, workdirs):
    maker = state_maker(settings, "brightness", check_start(settings))
    ends = [load_tree(path / "checkpoints" / "brightness", maker.abstract()) for path in workdirs]
    assert [end.step for end in ends] == [STEPS, STEPS]
    jax.tree.map(np.testing.assert_array_equal, ends[1].state, ends[0].state)
    curves = [{line["step"]: line for line in read_metrics(path) if line["stage"] == "brightness"} for path in workdirs]
    assert curves[0].keys() == {2, 4, 6, 8}
    assert curves[0][STEPS]["loss"] < curves[0][2]["loss"] / 2
    assert {"bright", "digest", "gradient_norm"} <= curves[0][STEPS].keys()
    assert [curves[1][step]["digest"] for step in (6, 8)] == [curves[0][step]["digest"] for step in (6, 8)]
    facts = json.loads((workdirs[1] / "run.json").read_text())["stages"]["brightness"]
    assert (facts["kind"], facts["steps"]) == ("brightness", STEPS)


def test_it_is_shown_and_reported(workdirs):
    for path in workdirs:
        assert [one.name for one in sorted((path / "samples" / "brightness").glob("0*"))] == ["000004", "000008"]
        report = (path / "report.html").read_text()
        assert "<h3>brightness</h3>" in report
        assert "<td>brightness</td><td>brightness</td><td>8</td>" in report, "its row of the table of stages"
        assert "how much red, green and blue weigh, at step 8" in report


def test_its_steps_are_run_again(reopened):
    again = list(replay(reopened, "brightness", step=6, steps=STEPS))
    assert [(step.done, step.digest_then is not None) for step in again] == [(7, False), (8, True)]
    assert not any(step.differs for step in again)


def test_its_checkpoints_are_checked(reopened):
    found = dict(checkpoint_faults(reopened.workdir, reopened.settings))
    assert {name: faults for name, faults in found.items() if name.startswith("brightness/")} == {
        "brightness/6": [],
        "brightness/8": [],
    }


def test_its_step_is_planned(settings):
    mesh = check_start(settings)
    assert steps.largest_stages(settings)[-1] == "brightness"
    (program,) = steps.train_programs(settings, mesh, ["prepare", "brightness"], segment_tokens=1)
    machine = plans.Machine(name="here", chip=None, devices=jax.devices(), slices=1)
    plan = plans.make_plan(program, settings, machine, mesh, limit=None)
    assert (plan.name, plan.flops, plan.facts) == (
        "brightness: train step",
        6.0 * 8 * 3,
        {"clips": 8, "micro-batches": 1},
    )
    assert plan.compiled
    assert plan.parameters == 4


def test_its_batches_are_split_as_those_of_every_kind(toy_config):
    settings = read_settings(add_stage(toy_config(), accumulate=3))
    with pytest.raises(UserError, match=r"a bucket of stages\.brightness has 8 clips, not a multiple of 24"):
        check_start(settings)


def test_a_run_of_it_alone_needs_no_other(toy_config):
    config = toy_config()
    config.run = ()
    settings = read_settings(add_stage(config))
    assert settings.run == ("brightness",)
    assert names_until(settings, "brightness") == ["brightness"]
    assert names_until(settings, "prepare") == []
    assert not settings.has_autoencoder


def test_a_kind_that_is_none_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"--until=films is no kind of stage: give one of autoencoder, .*, brightness$"):
        run.run(config, tmp_path / "run", until="films")
    assert not (tmp_path / "run").exists()


def test_a_model_of_a_stage_is_that_of_its_kind(settings):
    mesh = check_start(settings)
    assert state_maker(settings, "brightness", mesh).abstract().params.keys() == {"weigh.bias", "weigh.kernel"}
    trained = "autoencoder, images, videos, brightness"
    for name in ("prepare", "films"):
        with pytest.raises(UserError, match=f"'{name}' is no stage that trains: --stage is one of {trained}$"):
            recipe_of(settings, name, mesh)
    tree = {**settings.stages, "brightness": dataclasses.replace(settings.stages["brightness"], kind="videos")}
    with pytest.raises(KeyError):
        state_maker(dataclasses.replace(settings, stages=tree), "brightness", mesh)


def test_the_page_on_kinds_lists_what_one_must_say():
    page = (ROOT / "docs" / "extending.md").read_text().split("## Add a kind of stage")[1].split("\n## ")[0]
    assert set(re.findall(r"^ *\| `(\w+)\(", page, re.MULTILINE)) == TrainKind.__abstractmethods__
    for name in re.findall(r"\(`(\w+)`(?:, `(\w+)`)?\)", page):
        assert all(hasattr(TrainKind, one) for one in name if one), name
    assert page.count("\n") <= 34


def told_apart(source: str) -> list[str]:
    """Returns the expressions that tell kinds of stage apart: by their classes, or by their names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and re.match(r"isinstance\(.*Stage\b", ast.unparse(node)):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Compare | ast.BinOp) and re.search(r"\b(kinds?|until)\b", ast.unparse(node)):
            strings = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}
            found += [ast.unparse(node)] if strings & {"autoencoder", "prepare", "diffusion"} else []
    return found


def test_kinds_are_told_apart_in_their_own_folder_alone():
    package = ROOT / "sora_jax"
    paths = [path for path in package.rglob("*.py") if "kinds" not in path.relative_to(package).parts]
    assert len(paths) > 150
    assert [f"{path}: {found}" for path in paths for found in told_apart(path.read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(stage, AutoencoderStage)",
        "isinstance(stages.get(name), a.PrepareStage | a.DiffusionStage)",
        "stage.kind == 'autoencoder'",
        "facts['kind'] != 'prepare'",
        "kind in ('prepare', 'diffusion')",
        "{'prepare'} & {*kinds}",
        "until == 'prepare'",
    ],
)
def test_a_ladder_is_found(source):
    assert len(told_apart(source)) == 1
    assert told_apart("part == 'autoencoder' and isinstance(stage, Source) and kind in KINDS") == []
