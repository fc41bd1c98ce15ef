"""Parameters that a stage does not train: written once beside its checkpoints, which hold their fingerprint alone.

    STAGE/frozen/0/   one more checkpoint, with a manifest of its own: {"params": {name: value}}
    STAGE/200/        its data have {"frozen": fingerprint}

So a folder of checkpoints is whole without the run, or the stage, that the values came from. Those of a public model
are not written once more: they lie in its files (`WeightSource`), and the fingerprint tells whether these are still
the same.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from etils import epath

from sora_jax.checkpoints import leaves
from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.checkpoints.reading import load_tree, read_step, saved_leaves, trusted_step
from sora_jax.checkpoints.retention import CheckpointConfig
from sora_jax.core.distributed import to_host
from sora_jax.core.errors import UserError

# The folder beside the steps, and the key in the data of a checkpoint.
FROZEN = "frozen"
_STEP = 0
_POLICY = CheckpointConfig(
    every_steps=1, every_minutes=None, keep=1, keep_best=0, keep_every_steps=None, keep_every_hours=None
)


class WeightSource(Protocol):
    """Files of a model, whose parameters a stage begins with and may freeze."""

    @property
    def place(self) -> str:
        """Where they are."""
        ...

    @property
    def dtype(self) -> jnp.dtype:
        """In which those that are frozen are kept."""
        ...

    def has(self, name: str) -> bool:
        """Returns whether the files have a parameter."""
        ...

    def load(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Returns parameters by name, each of its dtype, where its sharding says; raises UserError without files."""
        ...


def params_fingerprint(params: Mapping[str, jax.Array]) -> str:
    """Returns 16 hexadecimal digits of the names, dtypes, shapes and bits of `params`, the same on any mesh.

    Every process must call it.
    """
    names = sorted(params)
    sums = to_host(_sums([params[name] for name in names])).tolist()
    lines = [f"{name} {leaves.form(params[name])} {number}\n" for name, number in zip(names, sums, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


@jax.jit
def _sums(values: list[jax.Array]) -> jax.Array:
    """Returns the sum of each array's bits, weighted by place, uint32; such sums are exact in any order."""

    def weighed(value: jax.Array) -> jax.Array:
        unsigned = jnp.dtype(f"uint{8 * value.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(value, unsigned).astype(jnp.uint32)
        place, stride = jnp.zeros(value.shape, jnp.uint32), 1
        for axis in reversed(range(value.ndim)):
            place += jnp.uint32(stride % 2**32) * jax.lax.broadcasted_iota(jnp.uint32, value.shape, axis)
            stride *= value.shape[axis]
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return jnp.stack([weighed(value) for value in values])


def save_frozen(
    directory: str | os.PathLike[str],
    params: Mapping[str, jax.Array],
    config: Mapping[str, Any],
    *,
    source: WeightSource | None = None,
) -> str:
    """Writes the frozen parameters of the stage whose checkpoints are in `directory`; returns their fingerprint.

    Those that `source` has are not written. What an earlier start left is replaced. Raises as `Checkpointer.save`.
    """
    found, (own, _) = params_fingerprint(params), split(params, source)
    if own:
        with Checkpointer(epath.Path(directory) / FROZEN, _POLICY) as saver:
            saver.save(_STEP, {"params": own}, {FROZEN: found}, config, settle=True)
    return found


def split(params: Mapping[str, Any], source: WeightSource | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (what of `params` is written beside the checkpoints, what `source` has)."""
    given = {name: value for name, value in params.items() if source is not None and source.has(name)}
    return {name: value for name, value in params.items() if name not in given}, given


def load_frozen(
    directory: str | os.PathLike[str], abstract: Mapping[str, Any], *, expected: str, source: WeightSource | None = None
) -> dict[str, Any]:
    """Returns the frozen parameters of a stage, where checkpoints were saved with the fingerprint `expected`.

    `abstract` has a `jax.ShapeDtypeStruct` with a sharding for each; those that `source` has come from there. Raises
    UserError if the values have another fingerprint, or are others than those of `abstract`, StorageError where their
    files are not as written.
    """
    folder, (own, given) = epath.Path(directory) / FROZEN, split(abstract, source)
    params = load_tree(folder, {"params": own}, step=_STEP).state["params"] if own else {}
    if source is not None and given:
        params |= source.load(given)
    _check(folder, params_fingerprint(params), expected, source)
    return params


def find_params(path: epath.Path, part: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what stands for the parameters of the checkpoint in `path`, by name: those of `part`, and frozen ones.

    `part` is "params", or "ema/TRACK". Raises OSError, ValueError or KeyError where there is no checkpoint.
    """
    trained = _under(part, saved_leaves(path))
    if FROZEN not in _data(path) or not (path.parent / FROZEN).exists():
        return trained, {}
    return trained, _under("params", saved_leaves(path.parent / FROZEN / str(_STEP)))


def load_params(
    directory: str | os.PathLike[str],
    part: str,
    abstract: Mapping[str, Any],
    *,
    step: int | None = None,
    source: WeightSource | None = None,
) -> tuple[dict[str, Any], int]:
    """Returns (parameters by name, step) of a checkpoint, with those that its stage had frozen.

    Args:
      directory: Of the checkpoints of a stage.
      part: "params", or "ema/TRACK".
      abstract: A `jax.ShapeDtypeStruct` with a sharding for each parameter; frozen ones are cast to its dtype.
      step: Of the checkpoint; None: the newest that can be trusted.
      source: Has those that the stage froze and did not write; they stay in the dtype in which it kept them.

    Raises as `load_tree` and `load_frozen`.
    """
    path = trusted_step(directory, step=step)
    note = _data(path).get(FROZEN)
    folder = path.parent / FROZEN
    if note is not None and folder.exists():
        folder = trusted_step(folder, step=_STEP)
    trained, frozen = find_params(path, part)
    beside = {name: frozen[name] for name in abstract if name in frozen and name not in trained}
    _, given = split({n: v for n, v in abstract.items() if n not in trained and n not in beside}, source)
    params: dict[str, Any] = {}
    if wanted := {f"{part}/{name}": abstract[name] for name in abstract if name not in beside and name not in given}:
        params |= _under(part, leaves.by_name(read_step(path, leaves.nest(wanted), whole=False).state))
    kept: dict[str, Any] = {}
    if beside:
        shapes = {
            name: jax.ShapeDtypeStruct(abstract[name].shape, value.dtype, sharding=abstract[name].sharding)
            for name, value in beside.items()
        }
        found = read_step(folder, {"params": shapes}, whole=False)
        _check(folder.parent, str(found.data[FROZEN]), str(note))
        kept = found.state["params"]
        params |= {name: value.astype(abstract[name].dtype) for name, value in kept.items()}
    if source is not None and given:
        loaded = _load_given(source, given)
        _check(path.parent / FROZEN, params_fingerprint({**kept, **loaded}), str(note), source)
        params |= loaded
    return {name: params[name] for name in abstract}, int(path.name)


def _load_given(source: WeightSource, given: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns parameters of a source in the dtype in which the stage kept them."""
    places = {name: one.sharding for name, one in given.items()}
    return source.load({n: jax.ShapeDtypeStruct(v.shape, source.dtype, sharding=places[n]) for n, v in given.items()})


def _under(part: str, named: Mapping[str, Any]) -> dict[str, Any]:
    return {n.removeprefix(f"{part}/"): value for n, value in named.items() if n.startswith(f"{part}/")}


def _data(path: epath.Path) -> dict[str, Any]:
    """Returns the data position of a checkpoint, and what is noted beside it."""
    return json.loads((path / "data" / "metadata").read_text())


def _check(folder: epath.Path, found: str, expected: str, source: WeightSource | None = None) -> None:
    if found != expected and source is not None:
        raise UserError(
            f"the weights in {source.place} have the fingerprint {found}, and the checkpoints in {folder.parent} were "
            f"trained on {expected}: give the model that they belong to as --config.model=DIR, or begin anew in "
            "another --workdir"
        )
    if found != expected:
        raise UserError(
            f"the frozen parameters in {folder} have the fingerprint {found}, and the checkpoints beside them were "
            f"trained with {expected}: put back the folder that belongs to them, or begin the stage anew in another "
            "--workdir"
        )
