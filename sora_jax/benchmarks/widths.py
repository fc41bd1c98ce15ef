"""Whether learning rates carry over from narrow transformers to wide ones: sizes of activations, and the best rate.

  python -m sora_jax.benchmarks.widths --workdir=runs/base --json=widths.json
  python -m sora_jax.benchmarks.widths --workdir=runs/base --optimizer=adamw --base_width=0
  python -m sora_jax.benchmarks.widths --workdir=runs/base --part=sizes

The clips are those that a run has prepared, in the same batches for all. `sizes`: the slope of the logarithm of each
activation's root mean square against the logarithm of the width, after 2 and after 10 steps (in the first the gates
are shut, and hide what is behind them). `rates`: the mean loss over the last quarter of a short schedule on a grid of
rates, and where the best of each width lies. --base_width=0 leaves muP out (`nn.scaling`), to compare with.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.core import rng
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.tree import Batch, Params, abstract_model, merge_model
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment.datasets import PackedBatches
from sora_jax.experiment.kinds.diffusion import DiffusionKind
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.models import transformer
from sora_jax.models.text import bytes as bytes_
from sora_jax.nn.linear import Linear
from sora_jax.train.loop import to_device
from sora_jax.train.optimizer import ScheduleConfig
from sora_jax.train.reporter import HostBatch
from sora_jax.train.state import TrainState
from sora_jax.train.workdir import Workdir

# Steps after which activations are looked at.
LOOKED_AT = (2, 10)
_MOST_SLOPE = "at most 0.05"
# Under which a linear map knows its name.
_CALLED = "called"

_FLAGS = Flags()
_WORKDIR = _FLAGS.workdir("The folder of a run whose clips are prepared.")
_JSON = _FLAGS.figures()
_PART = _FLAGS.choice("part", "all", ["sizes", "rates", "all"], "What is measured.")
_BASE = _FLAGS.integer("base_width", 64, "At which a rate is given; 0: each width has the rate as it is.", least=0)
_SIZES = _FLAGS.integers("width", [64, 128, 256, 512], "Whose activations are looked at.", least=1)
_TRAINED = _FLAGS.integers("trained_width", [64, 128, 256], "Whose best rate is looked for.", least=1)
_HEAD = _FLAGS.integer("head_width", 16, "Of all heads.", least=2)
_DEPTH = _FLAGS.integer("depth", 2, "Blocks.", least=1)
_OPTIMIZER = _FLAGS.choice("optimizer", "muon", ["adamw", "muon"], "The optimizer.")
_RATE = _FLAGS.number("rate", 5e-3, "At which activations are looked at.", least=0.0)
_LEAST = _FLAGS.number("least_rate", 1e-3, "The first of the grid, each twice the one before.", least=0.0)
_RATES = _FLAGS.integer("rates", 6, "Of the grid.", least=2)
_STEPS = _FLAGS.integer("steps", 120, "Of each training on the grid.", least=8)
_SEEDS = _FLAGS.integer("seeds", 3, "Initialisations of the widest over which sizes are averaged.", least=1)
_ROWS = _FLAGS.integer("rows", 4, "Of a batch.", least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WidthStudy:
    """Transformers that differ in their width alone, and what they are trained on.

    Attributes:
      settings: Of a run.
      base_width: Whose rates are given; None: each width has them as they are.
      head_width: Of all heads.
      depth: Blocks.
      optimizer: "adamw" or "muon".
      batches: Packs, in the order in which each is trained on them.
    """

    settings: Settings
    base_width: int | None
    head_width: int
    depth: int
    optimizer: str
    batches: Sequence[HostBatch]


class Trainer:
    """The transformer of one width: one compiled step for all rates and seeds."""

    def __init__(self, study: WidthStudy, width: int):
        name = study.settings.stages_of(TEXT_TO_VIDEO)[-1]
        settings, kind = _at_width(study, width, name), DiffusionKind()
        self._mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1), jax.devices()[:1])
        self._recipe = kind.recipe(settings, name, self._mesh)
        build = self._recipe.maker.build
        self._named, _, _ = abstract_model(lambda key: _with_names(build(key)))
        self._batches = study.batches

    def train(self, schedule: ScheduleConfig, *, steps: int, seed: int = 0) -> Iterator[tuple[TrainState, float]]:
        """Yields (the state, the loss before) after each step; a state holds until the next is asked for."""
        scalars = dataclasses.replace(self._recipe.step, schedule=schedule, steps=steps).scalars
        with jax.set_mesh(self._mesh):
            state = self._recipe.maker.fresh(rng.key(seed, "widths"))
            for number in range(steps):
                batch = to_device(self._batches[number % len(self._batches)], self._mesh)
                state, metrics = self._recipe.program(state, batch, scalars)
                yield state, float(metrics["loss"])

    def sizes(self, state: TrainState) -> dict[str, float]:
        """Returns the root mean square of what each linear map gives on the first batch, by its name and layer."""
        with jax.set_mesh(self._mesh):
            seen = self._seen({**state.frozen, **state.params}, to_device(self._batches[0], self._mesh))
        return {name: float(size) for name, size in seen.items()}

    @functools.partial(jax.jit, static_argnums=0)
    def _seen(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        with _observed() as seen:
            self._recipe.objective(merge_model(self._named, params), batch, rng.key(0, "sizes"))
        return seen


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    study = study_of_flags()
    figures = []
    if _PART.value != "rates":
        figures += size_figures(study, _SIZES.value, rate=_RATE.value, seeds=_SEEDS.value)
    if _PART.value != "sizes":
        rates = [_LEAST.value * 2**i for i in range(_RATES.value)]
        figures += rate_figures(study, _TRAINED.value, rates, steps=_STEPS.value)
    publish(figures, _JSON.value)


def study_of_flags() -> WidthStudy:
    """Returns what the flags say; raises UserError for widths that tell nothing and a run without prepared clips."""
    asked = {"sizes": _SIZES.value, "rates": _TRAINED.value}
    for part in asked if _PART.value == "all" else (_PART.value,):
        check_widths(part, asked[part], head_width=_HEAD.value)
    workdir = Workdir(_WORKDIR.value)
    settings = read_settings(workdir.config())
    if not settings.stages_of(TEXT_TO_VIDEO):
        raise UserError(f"{workdir.path} trains no transformer: give a --workdir that does")
    settings = dataclasses.replace(settings, packing=dataclasses.replace(settings.packing, rows=_ROWS.value))
    count = _STEPS.value if _PART.value != "sizes" else LOOKED_AT[-1]
    return WidthStudy(
        settings=settings,
        base_width=_BASE.value or None,
        head_width=_HEAD.value,
        depth=_DEPTH.value,
        optimizer=_OPTIMIZER.value,
        batches=read_batches(workdir, settings, count),
    )


def check_widths(part: str, widths: Sequence[int], *, head_width: int) -> None:
    """Raises UserError for widths that cannot be compared."""
    if part == "sizes" and len({*widths}) < 2:
        raise UserError(f"one --width={widths[0]} has no slope: give two or more")
    if bad := [width for width in widths if width % head_width]:
        raise UserError(f"a width of {bad[0]} is no multiple of --head_width={head_width}: give one that is")


def read_batches(workdir: Workdir, settings: Settings, count: int) -> list[HostBatch]:
    """Returns the first packs of the last stage of a run, which must have prepared its clips."""
    stage = DiffusionKind().of(settings, settings.stages_of(TEXT_TO_VIDEO)[-1])
    prepared = PreparedSet.open([workdir.prepared(name) for name in settings.collections], {})
    with contextlib.closing(PackedBatches(prepared, settings, mix=stage.mix).batches(0)) as batches:
        return list(itertools.islice(batches, count))


def size_figures(study: WidthStudy, widths: Sequence[int], *, rate: float, seeds: int) -> list[Figure]:
    """Returns the steepest slope over all activations after each of `LOOKED_AT` steps, and of which it is.

    Sizes are averaged over `seeds` initialisations of the widest, and over as many more of narrower ones as their sizes
    vary more: the variance of the size of a random vector falls with its length.
    """
    constant = ScheduleConfig(learning_rate=rate, warmup_steps=0, decay_share=0.0, final_share=1.0)
    sizes: dict[int, list[dict[str, Any]]] = {step: [] for step in LOOKED_AT}
    with tqdm(total=sum(seeds * max(widths) // width for width in widths), desc="sizes", leave=False) as bar:
        for width in widths:
            trainer, found = Trainer(study, width), {step: list[dict[str, float]]() for step in LOOKED_AT}
            for seed in range(seeds * max(widths) // width):
                for step, (state, _) in enumerate(trainer.train(constant, steps=LOOKED_AT[-1], seed=seed), start=1):
                    if step in found:
                        found[step].append(trainer.sizes(state))
                bar.update()
            for step, of_seeds in found.items():
                sizes[step].append({n: np.mean([np.log(one[n]) for one in of_seeds]) for n in of_seeds[0]})
    figures = []
    for step, by_width in sizes.items():
        slopes = slopes_of(widths, by_width)
        steepest = max(slopes, key=lambda name: abs(slopes[name]))
        said = f"steepest slope of log size on log width after {step} steps, of {steepest}"
        figures.append(_figure(f"slope_step_{step}", abs(slopes[steepest]), said, target=_MOST_SLOPE))
        usual = float(np.median(np.abs(list(slopes.values()))))
        figures.append(_figure(f"median_slope_step_{step}", usual, f"the median of {len(slopes)} maps"))
    return figures


def slopes_of(widths: Sequence[int], logarithms: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the slope of each activation's log size, one mapping for each width, against the log of the width."""
    x = np.log(widths) - np.mean(np.log(widths))
    table = {name: np.array([float(one[name]) for one in logarithms]) for name in logarithms[0]}
    return {name: float(x @ y / (x @ x)) for name, y in table.items()}


def rate_figures(study: WidthStudy, widths: Sequence[int], rates: Sequence[float], *, steps: int) -> list[Figure]:
    """Returns the mean loss over the last quarter by width and rate, the best rates, and how far apart these are."""
    figures: list[Figure] = []
    best: dict[int, int] = {}
    with tqdm(total=len(widths) * len(rates), desc="rates", leave=False) as bar:
        for width in widths:
            trainer, losses = Trainer(study, width), []
            for rate in rates:
                schedule = ScheduleConfig(
                    learning_rate=rate, warmup_steps=steps // 10, decay_share=0.5, final_share=0.02
                )
                found = [loss for _, loss in trainer.train(schedule, steps=steps)]
                losses.append(float(np.mean(found[-(steps // 4) :])))
                figures.append(_figure(f"loss_{width}_{rate:g}", losses[-1], f"width {width} at a rate of {rate:g}"))
                bar.update()
            # A loss that is not finite is none.
            best[width] = int(np.argmin([loss if math.isfinite(loss) else math.inf for loss in losses]))
            figures.append(_figure(f"best_rate_{width}", rates[best[width]], f"the best of width {width}"))
    apart = max(best.values()) - min(best.values())
    said = f"points of the grid between the best rates of widths {', '.join(map(str, widths))}"
    return [*figures, _figure("best_rates_apart", float(apart), said, target="0")]


def _figure(name: str, value: float, meaning: str, *, target: str | None = None) -> Figure:
    return Figure(name=name, value=value, target=target, meaning=meaning)


def _at_width(study: WidthStudy, width: int, name: str) -> Settings:
    """Returns the settings of the run with the transformer of a width, and the optimizer of the stage `name`."""
    shape = dataclasses.replace(
        study.settings.transformer,
        width=width,
        base_width=study.base_width,
        heads=width // study.head_width,
        mlp_width=4 * width,
        depth=study.depth,
    )
    stage = DiffusionKind().of(study.settings, name)
    stage = dataclasses.replace(stage, optimizer=dataclasses.replace(stage.optimizer, name=study.optimizer))
    stages = {**study.settings.stages, name: stage}
    return dataclasses.replace(study.settings, transformer=shape, stages=stages)


def _with_names(model: nnx.Module) -> nnx.Module:
    """Returns a model whose linear maps know what they are called."""
    for path, part in nnx.iter_graph(model):
        if isinstance(part, Linear):
            setattr(part, _CALLED, ".".join(map(str, path)))
    return model


@contextlib.contextmanager
def _observed() -> Iterator[dict[str, jax.Array]]:
    """Yields the sizes of what linear maps give meanwhile, float32, which fills as they are called.

    Blocks are called one by one: nothing comes out of a loop of the compiler but what is passed through it.
    """
    seen: dict[str, jax.Array] = {}

    def observed(method: Any) -> Any:
        def call(self: Any, *arguments: Any, **options: Any) -> jax.Array:
            given = method(self, *arguments, **options)
            called = getattr(self, _CALLED)
            layer = next(i for i in itertools.count() if f"{called} {i}" not in seen)
            seen[f"{called} {layer}"] = jnp.sqrt(jnp.mean(jnp.square(given.astype(jnp.float32))))
            return given

        return call

    methods = {name: observed(getattr(Linear, name)) for name in ("__call__", "to_heads", "from_heads")}
    with (
        mock.patch.multiple(Linear, **methods),
        mock.patch.object(transformer, "scan_blocks", _one_by_one),
        mock.patch.object(bytes_, "scan_blocks", _one_by_one),
    ):
        yield seen


def _one_by_one(blocks: Any, x: jax.Array, apply: Callable[[Any, jax.Array], jax.Array], *, remat: str) -> jax.Array:
    """Returns what `nn.stack.scan_blocks` does."""
    del remat
    structure, state = nnx.split(blocks)
    for layer in range(jax.tree.leaves(state)[0].shape[0]):
        x = apply(nnx.merge(structure, jax.tree.map(lambda leaf, layer=layer: leaf[layer], state)), x)
    return x


if __name__ == "__main__":
    run_command(main, _FLAGS)
