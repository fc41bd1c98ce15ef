"""The public Wan transformer weights in and out, one to one, tensor by tensor: no host holds a model twice.

Wan's own pipeline pads the text of every prompt with zero vectors to 512 tokens and attends to all of them; so does a
transformer with `text_pad_to` 512, at the cost of one.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.tree import Params
from sora_jax.models.interop.wan_files import described
from sora_jax.models.interop.wan_names import Form, their_shape, to_ours, to_theirs
from sora_jax.models.interop.wan_shape import WanShape, foreign_config
from sora_jax.models.interop.weights import Stored, check_names, listed
from sora_jax.models.interop.writing import SHARD_BYTES, Tensor, check_empty, write_weights

# Columns that are turned at once: their lines of both arrays stay in a core's cache.
_COLUMNS = 64
# Bytes.
_ALIGNMENT = 64


def load_wan(path: str | Path, wanted: Mapping[str, jax.ShapeDtypeStruct] | None = None) -> Params:
    """Returns parameters of `Transformer` from the weights at `path`, each where it is wanted, and in the wanted dtype.

    Tensors are read one after the other and cast on the way; a process reads what its own devices hold. So beside the
    result the host holds the part of one parameter.

    UserError as `describe_wan`, and where another name or shape is wanted than there is.

    Args:
      path: As of `describe_wan`.
      wanted: Shape, dtype and sharding of each parameter by name, or of some; a sharding of None is the first device.
        None: all, in the dtype in which they are stored, the widest of the blocks'.
    """
    shape, tensors = described(path)
    stored = {ours: [tensors[their] for their in theirs] for ours, (_, theirs) in shape.names().items()}
    there = shape.our_shapes()
    if wanted is None:
        wanted = {name: jax.ShapeDtypeStruct(there[name], _widest(parts)) for name, parts in stored.items()}
    wrong = [
        f"{name} is {there.get(name, 'not there')} instead of {tuple(leaf.shape)}"
        for name, leaf in wanted.items()
        if there.get(name) != tuple(leaf.shape)
    ]
    if wrong:
        raise UserError(f"{path} does not fit the config: {listed(wrong)}; take the config from the weights")
    # The largest first: what one takes beside the result is then taken when there is least of that.
    order = sorted(wanted, key=lambda name: -math.prod(wanted[name].shape))
    return {name: _load(name, stored[name], wanted[name], shape) for name in order}


def _widest(stored: Sequence[Stored]) -> np.dtype:
    return max((one.dtype for one in stored), key=lambda dtype: dtype.itemsize)


def _load(name: str, stored: Sequence[Stored], leaf: jax.ShapeDtypeStruct, shape: WanShape) -> jax.Array:
    """Returns one parameter, of as many tensors as it has layers."""
    form, stacked = shape.names()[name][0].form, name.startswith("blocks.")
    parts: dict[str, np.ndarray] = {}

    def part(index: Any) -> np.ndarray:
        # Devices that hold the same part share it.
        if (key := str(index)) not in parts:
            sizes = [len(range(*one.indices(size))) for one, size in zip(index, leaf.shape, strict=True)]
            parts[key] = array = _aligned(sizes, leaf.dtype)
            layers = range(*index[0].indices(leaf.shape[0])) if stacked else range(1)
            for place, layer in enumerate(layers):
                theirs = to_ours(stored[layer].open(), form, out_channels=shape.out_channels)
                _copy(theirs[index[1:] if stacked else index], array[place] if stacked else array)
        return parts[key]

    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.make_array_from_callback(leaf.shape, sharding, part)


def _aligned(sizes: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Returns an array of any content that jax need not copy on CPU, as it copies one that begins elsewhere."""
    room = np.empty(math.prod(sizes) * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + len(room) - _ALIGNMENT].view(dtype).reshape(sizes)


def _copy(array: np.ndarray, to: np.ndarray) -> None:
    """Writes `array`, which may lie transposed in a file, into `to`, cast."""
    if array.ndim < 2:
        to[...] = array
        return
    for start in range(0, array.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        # Cast as it lies, and then turned: at once would take twice the time.
        to[:, columns] = array[:, columns].astype(to.dtype)


def to_wan(params: Mapping[str, Any], shape: WanShape) -> dict[str, np.ndarray]:
    """Returns Wan's weights by the names of `shape.layout`, on the host, in the dtypes of `params`.

    UserError that lists parameters which are missing, or which Wan does not have.
    """
    return {name: tensor.read() for name, tensor in _tensors(params, shape, None).items()}


def save_wan(
    path: str | Path,
    params: Mapping[str, Any],
    shape: WanShape,
    *,
    dtype: Any = None,
    shard_bytes: int | None = SHARD_BYTES,
) -> list[Path]:
    """Writes our parameters under Wan's names, with a config.json beside them, and returns the files of weights.

    Names and config.json are those of `shape.layout`; `dataclasses.replace` it to write the other. Tensors are read
    and written one after the other.

    Raises UserError where parameters are missing, where Wan has none such, or weights or a config.json are there
    already; StorageError where they cannot be written.

    Args:
      path: A folder, made if it is not there, for one file or several with an index; or a name that ends in
        .safetensors, for one file.
      params: By name, arrays of numpy or jax.
      shape: Of the transformer.
      dtype: Of all; None: as they are.
      shard_bytes: Largest size of a file in a folder, unless one tensor is larger; None: one file.
    """
    path, tensors = Path(path), _tensors(params, shape, dtype)
    if (path / "config.json").exists():
        check_empty(path)
        raise UserError(f"{path} holds a config.json already, of another model: give an empty folder, or another name")
    files = write_weights(path, tensors, shard_bytes=shard_bytes)
    config = files[0].parent / "config.json"
    try:
        if not config.exists():
            config.write_text(json.dumps(foreign_config(shape), indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {config}: {error.strerror}") from error
    return files


def _tensors(params: Mapping[str, Any], shape: WanShape, dtype: Any) -> dict[str, Tensor]:
    """Returns by foreign name what is to be written, each array read from its parameter when it is asked for."""
    names = shape.names()
    check_names(found=params, wanted=names, what="parameters", remedy="Wan has no pooled text, no place features")

    def tensor(ours: str, form: Form, layer: int | None) -> Tensor:
        leaf = params[ours]
        kind = np.dtype(leaf.dtype if dtype is None else dtype)

        def read() -> np.ndarray:
            array = np.asarray(leaf if layer is None else leaf[layer])
            return to_theirs(array, form, patch=shape.patch, out_channels=shape.out_channels).astype(kind, copy=False)

        return Tensor(read, their_shape(leaf.shape[layer is not None :], form, patch=shape.patch), kind)

    return {
        their: tensor(ours, name.form, layer if ours.startswith("blocks.") else None)
        for ours, (name, theirs) in names.items()
        for layer, their in enumerate(theirs)
    }
