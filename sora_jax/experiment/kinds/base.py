"""What a kind of stage is: everything in which stages of one kind differ from those of another.

A kind is a class derived from these and a row in the table `KINDS`. One that trains is a `TrainKind`: it says what its
model is, what is minimised and on what; loop, checkpoints, resume, plan, estimate, replay and report follow from that.
What passes from one stage to the next lies in the workdir: weights in checkpoints, latent statistics, shards.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from sora_jax.checkpoints.frozen import WeightSource
from sora_jax.checkpoints.retention import find_steps
from sora_jax.core import rng
from sora_jax.core.ahead import Ahead
from sora_jax.core.errors import UserError
from sora_jax.core.sharding import ways
from sora_jax.core.stop import StopSignal
from sora_jax.data.fitting import Collection, FittedSource
from sora_jax.experiment.init_from import inherit
from sora_jax.experiment.kinds.recipe import Recipe
from sora_jax.experiment.loading import load_codec
from sora_jax.experiment.programs import Program, StepBatch
from sora_jax.experiment.sample_log import SampleLog
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.speed import Costs
from sora_jax.experiment.stage_settings import MixConfig, Stage, TrainStage
from sora_jax.models.codec import Codec
from sora_jax.train.loop import RunContext, Stream, TrainJob, train
from sora_jax.train.metrics import MetricsWriter
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.progress import Part, RunProgress
from sora_jax.train.state import StateMaker, TrainState, next_stage
from sora_jax.train.step import Objective, StepConfig
from sora_jax.train.step_runner import program_name
from sora_jax.train.workdir import Workdir

S = TypeVar("S", bound=Stage)
T = TypeVar("T", bound=TrainStage)
# Returns the end of the stage before, of those that train the same model; None where there is none.
Before = Callable[[], TrainState | None]
Show = Callable[[TrainState, int], None]
Validate = Callable[[TrainState], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything the stages of one run share.

    Attributes:
      settings: The config, read.
      workdir: Where it writes.
      mesh: The devices.
      metrics: Its curves.
      collections: Its clips.
      stop: Whether it was asked to stop.
      progress: How far it is.
      ahead: Compiles programs of later stages.
      fresh_data: Whether stages in progress go on with data that changed.
    """

    settings: Settings
    workdir: Workdir
    mesh: Mesh
    metrics: MetricsWriter
    collections: list[Collection]
    stop: StopSignal
    progress: RunProgress
    ahead: Ahead = dataclasses.field(default_factory=Ahead)
    fresh_data: bool = False

    @property
    def context(self) -> RunContext:
        """What the loop needs of the run."""
        return RunContext(
            workdir=self.workdir,
            metrics=self.metrics,
            checkpoint=self.settings.checkpoint,
            log=self.settings.log,
            stop=self.stop,
            progress=self.progress,
            ahead=self.ahead,
            fresh_data=self.fresh_data,
        )

    @property
    def fitted(self) -> FittedSource:
        """All clips, as they will be encoded."""
        return FittedSource(self.collections)

    @functools.cached_property
    def recipes(self) -> dict[str, Recipe]:
        """The recipes of stages that are not finished, each the only one, as its program may be compiled ahead."""
        return {}

    @functools.cached_property
    def codec(self) -> Codec:
        """The autoencoder, once no stage trains it any more; it decodes beside weights that lie on the mesh."""
        return load_codec(self.workdir, self.settings, mesh=self.mesh)

    def sample_log(self, stage: str, step: int) -> SampleLog:
        """Returns where what a stage makes at a step is shown."""
        return SampleLog(workdir=self.workdir, metrics=self.metrics, stage=stage, step=step)


class Kind(abc.ABC, Generic[S]):
    """A kind of stage.

    Attributes:
      stage: The dataclass of its keys.
      after: Kinds of which a stage must come before, and none may follow.
      once: Whether a run has one such stage at most.
      place: Its place in the order of a run, in words.
      shows_pairs: Whether what it shows are originals beside reconstructions.
      takes_in_clips: Whether a finished stage is asked for again by clips that are new, see `is_outdated`.
      compiling: Seconds to trace and compile its programs, and to load them where they lie compiled.
    """

    stage: type[S]
    after: ClassVar[tuple[str, ...]] = ()
    once: ClassVar[bool] = False
    place: ClassVar[str] = "any number of {kind}"
    shows_pairs: ClassVar[bool] = False
    takes_in_clips: ClassVar[bool] = False
    compiling: ClassVar[tuple[float, float]] = (30.0, 12.0)

    def of(self, settings: Settings, name: str) -> S:
        """Returns what the config says of the stage `name`, which is of this kind."""
        stage = settings.stages[name]
        assert isinstance(stage, self.stage), stage
        return stage

    def given(self, settings: Settings) -> bool:
        """Returns whether the run has from elsewhere what stages of this kind make."""
        del settings
        return False

    def conflicts(self, settings: Settings, name: str) -> list[str]:
        """Returns what of the stage `name` cannot work with the rest of the config, in words."""
        del settings, name
        return []

    def check(self, settings: Settings, name: str, mesh: Mesh) -> None:
        """Raises UserError for what the devices of `mesh`, or files that the config names, cannot do."""
        del settings, name, mesh

    def is_outdated(self, run: Run, name: str, until: str | None) -> bool:
        """Returns whether a stage that is done is to be run again; `until` as in `run_stages`."""
        del run, name, until
        return False

    def compile_ahead(self, run: Run, name: str) -> None:
        """Lets `run.ahead` compile what the stage will run; nothing."""
        del run, name

    @abc.abstractmethod
    def expected(self, settings: Settings, name: str, costs: Costs, workdir: Workdir, *, clips: int) -> Part:
        """Returns how long a stage takes over `clips` clips, and what of it is done."""

    @abc.abstractmethod
    def run(self, run: Run, name: str, before: Before) -> dict[str, Any]:
        """Runs the stage to its end, from where it was interrupted, if it was; returns facts about it."""


class TrainKind(Kind[T]):
    """A kind of stage that trains.

    Attributes:
      key: Name of the randomness that initialises its model.
      keeps_averages: Whether averages of its model are kept on the way, `ema.snapshots` times.
    """

    key: ClassVar[str]
    keeps_averages: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, settings: Settings, name: str, key: jax.Array) -> nnx.Module:
        """Returns the model as initialised."""

    @abc.abstractmethod
    def objective(self, settings: Settings, name: str) -> Objective:
        """Returns what is minimised; raises UserError as `check`."""

    @abc.abstractmethod
    def stream(self, run: Run, name: str) -> Stream:
        """Returns the batches; the same for a run and for a replay."""

    @abc.abstractmethod
    def batches(self, settings: Settings, name: str, *, segment_tokens: int) -> list[StepBatch]:
        """Returns every kind of batch as shapes; packed rows are full of segments of so many tokens."""

    @abc.abstractmethod
    def step_seconds(self, settings: Settings, name: str, costs: Costs) -> float:
        """Returns how long a step takes, on average."""

    def once_seconds(self, settings: Settings, name: str, costs: Costs) -> float:
        """Returns how long the stage takes besides its steps: to compile, to show."""
        del settings, name
        return costs.speed.once(*self.compiling)

    def show(self, run: Run, name: str) -> Show:
        """Returns what is called with the state and its step at `log.samples_per_stage` moments; shows nothing."""
        del run, name
        return lambda state, step: None

    def validation(self, run: Run, name: str) -> Validate | None:
        """Returns what measures a state on clips that are held out, by names of curves; None: nothing does."""
        del run, name
        return None

    def validation_seconds(self, settings: Settings, name: str, costs: Costs, *, clips: int) -> float:
        """Returns how long it takes to measure a state once on so many held-out clips; 0: nothing is measured."""
        del settings, name, costs, clips
        return 0.0

    def finish(self, run: Run, name: str, state: TrainState) -> None:
        """Leaves in the workdir what later stages need of the end of this one besides its checkpoint; nothing."""
        del run, name, state

    def lineage(self, settings: Settings, name: str) -> Any:
        """Returns which of several models of its kind a stage trains: those of one go on from one another."""
        del settings, name
        return None

    def source(self, settings: Settings, name: str) -> WeightSource | None:
        """Returns the files that a stage begins with where no stage came before; None: there are none."""
        del settings, name
        return None

    def base_shapes(self, settings: Settings, name: str) -> dict[str, tuple[int, ...]] | None:
        """Returns the shapes of the parameters at the width whose rates the config gives; None: at its own."""
        del settings, name
        return None

    def prediction(self, settings: Settings) -> str | None:
        """Returns what a generator that is trained outputs; None: this is none."""
        del settings
        return None

    def maker(self, settings: Settings, name: str, mesh: Mesh) -> StateMaker:
        """Returns what builds the states of a stage."""
        stage = self.of(settings, name)
        return StateMaker(
            build=functools.partial(self.build, settings, name),
            make_optimizer=functools.partial(make_optimizer, stage.optimizer, base=self.base_shapes(settings, name)),
            ema=settings.ema,
            mesh=mesh,
            trainable=stage.trained,
            frozen_dtype=stage.frozen_dtype,
            source=self.source(settings, name),
        )

    def recipe(self, settings: Settings, name: str, mesh: Mesh) -> Recipe:
        """Returns the recipe of a stage, which training runs and plans compile; raises as `check`."""
        stage = self.of(settings, name)
        step = StepConfig(
            name=name,
            seed=settings.seed,
            steps=stage.steps,
            accumulate=stage.accumulate,
            schedule=stage.schedule,
            ema=settings.ema if self.keeps_averages else dataclasses.replace(settings.ema, snapshots=None),
            guard=settings.guard,
        )
        return Recipe(objective=self.objective(settings, name), maker=self.maker(settings, name, mesh), step=step)

    def programs(self, settings: Settings, name: str, mesh: Mesh, *, segment_tokens: int) -> list[Program]:
        """Returns the train step on each kind of batch; arguments as of `batches`."""
        recipe = self.recipe(settings, name, mesh)
        planned = self.batches(settings, name, segment_tokens=segment_tokens)
        return [recipe.planned(batch) for batch in planned]

    def _recipe_in(self, run: Run, name: str) -> Recipe:
        """Returns the recipe of a stage, with its program: two threads would each make one of their own."""
        if name not in run.recipes:
            recipe = run.recipes[name] = self.recipe(run.settings, name, run.mesh)
            _ = recipe.program
        return run.recipes[name]

    def compile_ahead(self, run: Run, name: str) -> None:
        """Lets `run.ahead` compile the train step on each kind of batch."""
        recipe, tokens = self._recipe_in(run, name), run.settings.data.max_tokens
        # From the last on, as the loop itself compiles the first one meanwhile.
        for batch in reversed(self.batches(run.settings, name, segment_tokens=tokens)):
            run.ahead.add(program_name(name, batch.shapes), functools.partial(recipe.lower, batch), run.mesh)

    def begin(self, run: Run, name: str, before: Before) -> TrainState:
        """Returns the end of the stage before, with what is new in this one, its counters at zero; or a fresh state.

        A stage that names another run starts from that; a fresh state has the weights of a public model, if any.
        """
        key, stage = rng.key(run.settings.seed, self.key), self.of(run.settings, name)
        maker = self.maker(run.settings, name, run.mesh)
        if stage.start_from is not None:
            return inherit(name, stage, maker, key)
        end = before()
        return maker.fresh(key) if end is None else next_stage(maker, end, key)

    def expected(self, settings: Settings, name: str, costs: Costs, workdir: Workdir, *, clips: int) -> Part:
        """Returns how long a stage takes, and how many steps of it are saved."""
        del clips
        steps = self.of(settings, name).steps
        return Part(
            name=name,
            total=steps,
            unit="steps",
            each=self.step_seconds(settings, name, costs),
            once=self.once_seconds(settings, name, costs),
            compiling=costs.speed.once(*self.compiling),
            done=min(max(find_steps(epath.Path(workdir.checkpoints(name))), default=0), steps),
        )

    def run(self, run: Run, name: str, before: Before) -> dict[str, Any]:
        """Trains to the end of the stage; returns facts about the way there."""
        recipe = self._recipe_in(run, name)
        job = TrainJob(
            program=recipe.program,
            maker=recipe.maker,
            initial=functools.partial(self.begin, run, name, before),
            step=recipe.step,
            stream=self.stream(run, name),
            show=self.show(run, name),
            validate=self.validation(run, name) if run.settings.log.validate_every else None,
        )
        state, facts = train(job, run.context)
        del run.recipes[name]  # and what is compiled of it
        self.finish(run, name, state)
        return facts


def unknown_collections(settings: Settings, name: str, mix: MixConfig) -> list[str]:
    """Returns which collections the mix of the stage `name` has that there are not, in words."""
    unknown = mix.collections.keys() - settings.collections
    if not unknown:
        return []
    there = ", ".join(settings.collections)
    return [f"stages.{name}.mix.collections names {', '.join(sorted(unknown))}; there are {there}"]


def check_split(settings: Settings, mesh: Mesh, *, heads: int, key: str) -> None:
    """Raises UserError where the mesh splits rows, or the heads that the config calls `key`, unevenly."""
    tokens = settings.packing.tokens
    if tokens % ways("length", mesh):
        raise UserError(
            f"packing.tokens is {tokens}, and the mesh axis sequence splits a row over {ways('length', mesh)} "
            "devices: make it a multiple of these"
        )
    if heads % ways("heads", mesh):
        raise UserError(
            f"{key} is {heads}, and the mesh axis tensor splits them over {ways('heads', mesh)} "
            "devices: make them a multiple of these"
        )
