"""Weights into safetensors files tensor by tensor, one file or several with an index, as diffusers reads them."""

import json
import math
import os
import struct
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sora_jax.core.errors import StorageError, UserError
from sora_jax.models.interop.weights import FLOAT_TYPES, WEIGHTS_FILE

# Largest file of a folder, bytes, but for a tensor that is larger; as published.
SHARD_BYTES = 5 * 10**9
_NAMES = {np.dtype(dtype): kind for kind, dtype in FLOAT_TYPES.items()}


class Tensor(NamedTuple):
    """One to be written: `read` gives it, of that shape and dtype, when it is its turn."""

    read: Callable[[], np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        """How long it is in a file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    shard_bytes: int | None,
    metadata: Mapping[str, str] = types.MappingProxyType({}),
) -> list[Path]:
    """Writes the tensors by their names and returns the files.

    Raises UserError where weights are there already, StorageError where they cannot be written.

    Args:
      path: A folder, made if it is not there; or a name that ends in .safetensors, for one file.
      tensors: By name.
      metadata: What the head of each file says besides.
      shard_bytes: Largest file of a folder; None: one file.
    """
    alone = path.suffix == ".safetensors"
    folder, name = (path.parent, path.name) if alone else (path, WEIGHTS_FILE)
    check_empty(path)
    shards = _shards(tensors, None if alone else shard_bytes)
    files = [name]
    if len(shards) > 1:
        stem = name.removesuffix(".safetensors")
        files = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, names in zip(files, shards, strict=True):
            _write(folder / file, {one: tensors[one] for one in names}, metadata)
        if len(files) > 1:
            where = {one: file for file, names in zip(files, shards, strict=True) for one in names}
            index = {"metadata": {"total_size": sum(one.bytes for one in tensors.values())}, "weight_map": where}
            (folder / f"{WEIGHTS_FILE}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    return [folder / file for file in files]


def check_empty(path: Path) -> None:
    """Raises UserError where weights are there already; `path` is as of `write_weights`."""
    if path.is_file() or (path.suffix != ".safetensors" and any(path.glob("*.safetensors*"))):
        raise UserError(f"{path} holds weights already: give an empty folder, or another name")


def _shards(tensors: Mapping[str, Tensor], most: int | None) -> list[list[str]]:
    """Returns the names of each file, in their order."""
    shards, full = [[]], 0
    for name, tensor in tensors.items():
        if most is not None and shards[-1] and full + tensor.bytes > most:
            shards.append([])
            full = 0
        shards[-1].append(name)
        full += tensor.bytes
    return shards


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes one file, under its name once it is whole."""
    # Of wide types first, so that each begins at a multiple of its width.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    head, end = {"__metadata__": {"format": "pt", **metadata}}, 0
    entries = {}
    for name in order:
        tensor = tensors[name]
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end := end + tensor.bytes],
        }
    text = json.dumps(head | entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    unfinished = file.with_name(f"{file.name}.part")
    with unfinished.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            stream.write(np.ascontiguousarray(tensors[name].read()).reshape(-1).view(np.uint8).data)
    os.replace(unfinished, file)
