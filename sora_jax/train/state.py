"""What training changes, as one pytree: created sharded, donated to every step, saved as a unit."""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from sora_jax.checkpoints import frozen
from sora_jax.checkpoints.frozen import WeightSource, load_frozen
from sora_jax.checkpoints.reading import Restored
from sora_jax.core import sharding, tree
from sora_jax.core.compiling import run_once
from sora_jax.core.errors import UserError
from sora_jax.train.guard import LossStats


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state of one model in training.

    Attributes:
      step: int32, steps done in the current stage.
      updates: int32, updates done over all stages of this model; the clock of EMA.
      skipped: int32, steps of this stage whose loss or gradient was not finite, left out.
      consecutive_skips: int32, how many of the latest steps in a row were skipped.
      spikes: int32, steps of this stage whose loss or gradient was far beyond those before.
      stats: Running statistics of both.
      params: float32 parameters by name.
      ema: For each track, an average of the parameters by name.
      opt_state: The optimizer's moments.
      frozen: Parameters by name that the stage does not train: no gradient, moments, averages, or bytes in checkpoints.
    """

    step: jax.Array
    updates: jax.Array
    skipped: jax.Array
    consecutive_skips: jax.Array
    spikes: jax.Array
    stats: LossStats
    params: tree.Params
    ema: dict[str, tree.Params]
    opt_state: Any
    frozen: tree.Params = dataclasses.field(default_factory=dict)

    @property
    def saved(self) -> "TrainState":
        """What a checkpoint holds of it: all but the frozen parameters."""
        return dataclasses.replace(self, frozen={})

    def averaged(self, track: str) -> tree.Params:
        """Returns all parameters of the model, the trained ones averaged."""
        return {**self.frozen, **self.ema[track]}


# Leaves are named by these keys in checkpoints, of which older ones must open.
_SAVED_AS = {"consecutive_skips": "unbroken", "stats": "usual"}


def _flatten(state: TrainState) -> tuple[list[tuple[Any, Any]], None]:
    names = [field.name for field in dataclasses.fields(TrainState)]
    return [(jax.tree_util.GetAttrKey(_SAVED_AS.get(name, name)), getattr(state, name)) for name in names], None


def _unflatten(_: None, values: Iterable[Any]) -> TrainState:
    names = [field.name for field in dataclasses.fields(TrainState)]
    return TrainState(**dict(zip(names, values, strict=True)))


jax.tree_util.register_pytree_with_keys(TrainState, _flatten, _unflatten)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Power-function averages of the weights (arXiv 2312.02696, section 3).

    Attributes:
      widths: Relative width of each track's window, each in (0, 0.28): 0.05 averages over about the last 5 % of the
        updates so far. Sampling uses the first.
      snapshots: How often in a stage all tracks are kept for `experiment.posthoc`; None: never.
    """

    widths: tuple[float, ...]
    snapshots: int | None

    def __post_init__(self):
        if not self.widths or not all(0 < width < 0.28 for width in self.widths):
            raise UserError(
                f"ema widths {self.widths} must be one or more numbers in (0, 0.28); 0.05 and 0.1 are usual"
            )
        if self.snapshots is None:
            return
        if self.snapshots < 1:
            raise UserError(f"ema snapshots {self.snapshots} must be at least 1, or None to keep none")
        if len(set(self.widths)) < 2:
            raise UserError(
                f"ema snapshots {self.snapshots} with the one width {self.widths[0]:g}: averages of another width are "
                "made of two, set ema.widths=(0.1,0.05)"
            )


def ema_exponent(width: float) -> float:
    """Returns gamma of the track of relative standard deviation `width`, where
    width² = (gamma + 1) / ((gamma + 2)² (gamma + 3)) (arXiv 2312.02696, equation 126)."""
    low, high = 0.0, 1e6
    for _ in range(200):
        gamma = (low + high) / 2
        wide = math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) > width
        low, high = (gamma, high) if wide else (low, gamma)
    return (low + high) / 2


def track_name(width: float) -> str:
    """Returns the name under which the track of `width` is kept."""
    return f"width_{width:g}"


def update_ema(
    ema: dict[str, tree.Params], params: tree.Params, updates: jax.Array, config: EmaConfig
) -> dict[str, tree.Params]:
    """Returns the tracks after update number `updates` (1-based): ema = beta ema + (1 - beta) params,
    beta = (1 - 1 / updates)^(gamma + 1), so the first update replaces the initial weights."""
    first, result = updates == 1, {}
    # After millions of updates float32 rounds 1 - 1 / updates, and each beta, to too few digits of 1 - beta. Added to
    # the track, a share of the difference needs neither; a share of 1 would not give the parameters exactly.
    log = jnp.log1p(-1.0 / updates.astype(jnp.float32))
    for width in config.widths:
        share, old = -jnp.expm1((ema_exponent(width) + 1) * log), ema[track_name(width)]
        moved = {n: old[n] + share * (params[n] - old[n]) for n in params}
        result[track_name(width)] = {n: jnp.where(first, params[n], moved[n]) for n in params}
    return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateMaker:
    """Builds states of one model: abstract, fresh, or carried over from an earlier stage.

    Attributes:
      build: Key -> module.
      make_optimizer: Axes by name -> gradient transformation of these parameters.
      ema: The tracks.
      mesh: Where the state lives.
      trainable: A regular expression that the whole names of the parameters match that are trained; None: all are.
      frozen_dtype: What the others are kept in; None: float32.
      source: Files that have parameters which states begin with; None: all begin as initialised.
    """

    build: Callable[[jax.Array], nnx.Module]
    make_optimizer: Callable[[tree.Axes], optax.GradientTransformation]
    ema: EmaConfig
    mesh: Mesh
    trainable: str | None = None
    frozen_dtype: str | None = None
    source: WeightSource | None = None

    def trains(self, name: str) -> bool:
        """Returns whether a parameter is trained."""
        return self.trainable is None or re.fullmatch(self.trainable, name) is not None

    def optimizer(self, axes: tree.Axes) -> optax.GradientTransformation:
        """Returns the optimizer of the parameters that are trained, given the axes of all; UserError if none is."""
        trained = {name: axes[name] for name in axes if self.trains(name)}
        if not trained:
            raise UserError(
                f"trainable {self.trainable!r} matches none of the {len(axes)} parameters, such as {min(axes)}: "
                "give a regular expression of whole names"
            )
        return self.make_optimizer(trained)

    def abstract_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns what stands for all parameters of the model, float32, with shardings."""
        _, params, axes = tree.abstract_model(self.build)
        places = sharding.param_shardings(axes, params, self.mesh)
        return {n: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=places[n]) for n, v in params.items()}

    def split(self, params: tree.Params) -> tuple[tree.Params, tree.Params]:
        """Returns (those that are trained, those that are frozen in their dtype) of all parameters, arrays or not."""
        dtype = jnp.dtype(self.frozen_dtype or "float32")
        trained = {name: value for name, value in params.items() if self.trains(name)}
        return trained, {name: value.astype(dtype) for name, value in params.items() if name not in trained}

    def abstract(self) -> TrainState:
        """Returns the state with `jax.ShapeDtypeStruct`s that carry shardings in place of arrays."""
        _, params, axes = tree.abstract_model(self.build)
        places = sharding.param_shardings(axes, params, self.mesh)
        shapes = jax.eval_shape(self._fresh, jax.random.key(0))
        trained = {name: places[name] for name in shapes.params}
        scalar = sharding.replicated(self.mesh)
        shardings = _state_of(
            step=scalar,
            updates=scalar,
            skipped=scalar,
            consecutive_skips=scalar,
            spikes=scalar,
            stats=jax.tree.map(lambda _: scalar, shapes.stats),
            params=trained,
            ema={track_name(width): trained for width in self.ema.widths},
            opt_state=sharding.optimizer_shardings(shapes.opt_state, shapes.params, trained, self.mesh),
            frozen={name: places[name] for name in shapes.frozen},
        )
        return jax.tree.map(
            lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
            shapes,
            shardings,
        )

    def fresh(self, key: jax.Array) -> TrainState:
        """Returns the initial state, created where it will live; what the source has is read, and never initialised.

        Raises UserError as the source does.
        """
        abstract, source = self.abstract(), self.source
        _, given = frozen.split({**abstract.frozen, **abstract.params}, source)

        def made(key: jax.Array) -> TrainState:
            return _without(self._fresh(key), given)

        shardings = jax.tree.map(lambda leaf: leaf.sharding, _without(abstract, given))
        state = jax.jit(made, out_shardings=shardings, compiler_options=run_once())(key)
        return state if source is None else _with(state, source.load(given), trains=self.trains)

    def _fresh(self, key: jax.Array) -> TrainState:
        _, params, axes = tree.split_model(self.build(key))
        params, rest = self.split(params)
        # Distinct buffers: the state is donated, and a buffer may be donated once.
        ema = {track_name(width): jax.tree.map(jnp.copy, params) for width in self.ema.widths}
        zeros = [jnp.zeros((), jnp.int32) for _ in range(5)]
        return TrainState(
            step=zeros[0],
            updates=zeros[1],
            skipped=zeros[2],
            consecutive_skips=zeros[3],
            spikes=zeros[4],
            stats=LossStats.nothing(),
            params=params,
            ema=ema,
            opt_state=self.optimizer(axes).init(params),
            frozen=rest,
        )


def _without(state: TrainState, names: Collection[str]) -> TrainState:
    """Returns the state without the parameters of these names, and without their averages."""

    def left(params: tree.Params) -> tree.Params:
        return {name: value for name, value in params.items() if name not in names}

    ema = {track: left(averages) for track, averages in state.ema.items()}
    return dataclasses.replace(state, params=left(state.params), ema=ema, frozen=left(state.frozen))


def _with(state: TrainState, params: tree.Params, *, trains: Callable[[str], bool]) -> TrainState:
    """Returns the state with these parameters too, whose averages begin as they are."""
    trained = {name: value for name, value in params.items() if trains(name)}
    rest = {name: value for name, value in params.items() if name not in trained}
    return dataclasses.replace(
        state,
        params=state.params | trained,
        # Distinct buffers: the state is donated, and a buffer may be donated once.
        ema={track: averages | jax.tree.map(jnp.copy, trained) for track, averages in state.ema.items()},
        frozen=state.frozen | rest,
    )


def _state_of(**fields: Any) -> TrainState:
    """Returns a TrainState of something else than arrays: shardings."""
    return TrainState(**fields)


def next_stage(maker: StateMaker, before: TrainState, key: jax.Array) -> TrainState:
    """Returns the state that a stage begins with after another of the same model; `before` is how that one ended.

    What it freezes is the first average of before, or was frozen then already; `key` initialises what is new.
    """
    abstract = maker.abstract()
    wanted, there = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) for state in (abstract, before))
    if wanted == there:
        return begin_stage(before)
    # What compiles for seconds is not made where nothing of it would stay.
    fresh = maker.fresh(key) if _has_more(abstract, before) else abstract
    return carry_over(fresh, before, average=track_name(maker.ema.widths[0]))


def _has_more(wanted: TrainState, before: TrainState) -> bool:
    """Returns whether a state has anything that one before it lacks, or has in another shape."""
    found = {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(before.saved)}
    leaves = jax.tree_util.tree_leaves_with_path(wanted.saved)
    params = {**before.frozen, **before.params}
    frozen = (name in params and params[name].shape == value.shape for name, value in wanted.frozen.items())
    return any(found.get(path) != leaf.shape for path, leaf in leaves) or not all(frozen)


def with_frozen(maker: StateMaker, restored: Restored, folder: str | os.PathLike[str]) -> TrainState:
    """Returns the state of a checkpoint in `folder` with the frozen parameters that lie there.

    Raises UserError where they are not those that it was trained with, StorageError where they cannot be trusted.
    """
    wanted = maker.abstract().frozen
    if not wanted:
        return restored.state
    params = load_frozen(folder, wanted, expected=str(restored.data.get(frozen.FROZEN)), source=maker.source)
    return dataclasses.replace(restored.state, frozen=params)


def carry_over(fresh: TrainState, before: TrainState, *, average: str) -> TrainState:
    """Returns `fresh` with all that `before` has by the same names and shapes, and the counters of the stage at zero.

    What is new in a stage, such as a discriminator, begins as it is in `fresh`. Parameters that were frozen and are
    trained now begin, as do their averages, with the value that they had; those that are frozen now have that of the
    track `average`, as samples and scores do.
    """
    found = dict(jax.tree_util.tree_leaves_with_path(before.saved))

    def choose(path: Any, leaf: jax.Array) -> jax.Array:
        known = found.get(path)
        return leaf if known is None or known.shape != leaf.shape else known

    state = jax.tree_util.tree_map_with_path(choose, fresh.saved)
    thawed = {n: v for n, v in before.frozen.items() if n in fresh.params and v.shape == fresh.params[n].shape}
    averages = before.averaged(average)

    def freeze(name: str, leaf: jax.Array) -> jax.Array:
        known = averages.get(name)
        return leaf if known is None or known.shape != leaf.shape else _copy(known, leaf)

    return begin_stage(
        dataclasses.replace(
            state,
            params=state.params | {n: _copy(v, fresh.params[n]) for n, v in thawed.items()},
            ema={t: ema | {n: _copy(v, fresh.params[n]) for n, v in thawed.items()} for t, ema in state.ema.items()},
            frozen={name: freeze(name, leaf) for name, leaf in fresh.frozen.items()},
        )
    )


def _copy(value: jax.Array, like: jax.Array) -> jax.Array:
    """Returns a buffer of its own, as the state is donated and a buffer may be donated once; in the dtype of `like`."""
    return jnp.copy(value).astype(like.dtype)


def begin_stage(state: TrainState) -> TrainState:
    """Returns `state` with counters and statistics of the stage at zero; weights, moments and EMA stay."""
    counters = {name: jnp.zeros_like(state.step) for name in ("step", "skipped", "consecutive_skips", "spikes")}
    return dataclasses.replace(state, **counters, stats=jax.tree.map(jnp.zeros_like, state.stats))
