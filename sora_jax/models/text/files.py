"""The files of a public text encoder: where its weights, its config.json and its tokenizer lie, and reading of them.

Tensors are read one by one from where they lie in the files; nothing holds a file as a whole.
"""

import dataclasses
import functools
import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.models.interop.json_files import read_config
from sora_jax.models.interop.weights import files_named, listed, read_shapes
from sora_jax.models.text.pieces import JsonPieces, Pieces, SentencePieces

_GIVE = "give a folder with model.safetensors, config.json and tokenizer.json, or a .safetensors file"
# Where the weights lie in a folder, and where a model's root has its text encoder.
_WEIGHTS = ("model.safetensors", "text_encoder/model.safetensors")
_TOKENIZER_FOLDERS = (".", "tokenizer", "../tokenizer", "google/umt5-xxl")
_TOKENIZERS: dict[str, Callable[[bytes, str], Pieces]] = {"tokenizer.json": JsonPieces, "spiece.model": SentencePieces}
# A tensor of ComfyUI's single files that holds the bytes of the tokenizer's file, by the name of that file.
_EMBEDDED = {"spiece_model": "spiece.model", "tokenizer_json": "tokenizer.json"}
_PICKLES = ("*.pth", "*.pt", "*.bin", "*.ckpt")
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "U8": np.uint8}
_READ = frozenset({"F64", "F32", "F16", "BF16"})
# Of each tensor so many bytes tell one set of weights from another: training changes all of them.
_DIGESTED = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies: in `file` from the byte `start` on, of a dtype by the name of the format."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """Returns the tensor as the file holds it, its bytes read when they are asked for."""
        return np.memmap(self.file, _DTYPES[self.dtype], "r", self.start, self.shape)

    def head(self) -> bytes:
        """Returns its first bytes."""
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            return stream.read(min(_DIGESTED, math.prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize))


class EncoderFiles:
    """What lies at `text.weights`: a folder, a model's root, or one .safetensors file.

    Raises UserError where there are no weights, or only those of another format.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        self.path = path
        self.files = _weights(path)
        self.tensors = _tensors(self.files)

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """The config.json beside the weights; empty where there is none. UserError where it is damaged."""
        return read_config(self.files[0].with_name("config.json"))

    @functools.cached_property
    def tokenizer_config(self) -> Mapping[str, Any]:
        """The tokenizer_config.json; empty where there is none. UserError where it is damaged."""
        for folder in self._tokenizer_folders():
            if found := read_config(folder / "tokenizer_config.json"):
                return found
        return {}

    def pieces(self) -> Pieces:
        """Returns the tokenizer, tokenizer.json before spiece.model; UserError where there is none."""
        for folder in self._tokenizer_folders():
            for name, kind in _TOKENIZERS.items():
                if (file := folder / name).is_file():
                    return kind(file.read_bytes(), str(file))
        for tensor, name in _EMBEDDED.items():
            if tensor in self.tensors:
                found = self.tensors[tensor]
                return _TOKENIZERS[name](found.read().tobytes(), f"{found.file}: {tensor}")
        raise UserError(f"{self.path} has no tokenizer: put its tokenizer.json or spiece.model beside the weights")

    def weights(self) -> dict[str, StoredTensor]:
        """Returns the tensors but for an embedded tokenizer and lists of positions; UserError for quantised ones."""
        apart = (*_EMBEDDED, "position_ids")
        found = {name: tensor for name, tensor in self.tensors.items() if not name.endswith(apart)}
        quantised = [name for name in found if name.endswith(("scaled_fp8", "scale_weight", "weight_scale"))]
        if others := quantised or [name for name, tensor in found.items() if tensor.dtype not in _READ]:
            raise UserError(
                f"{self.path} holds quantised weights ({listed(sorted(others))}): give those in bfloat16, float16 or "
                "float32"
            )
        return found

    def _tokenizer_folders(self) -> list[Path]:
        places = [self.files[0].parent, *([self.path] if self.path.is_dir() else [])]
        return [place / folder for place in places for folder in _TOKENIZER_FOLDERS]


def text_weights_needed() -> str:
    """Raises UserError: there is no place that no key names."""
    raise UserError("text.weights is not given: pass --config.text.weights=DIR, the folder of the text encoder")


def weights_digest(weights: Mapping[str, StoredTensor]) -> str:
    """Returns what tells weights from others: of names, dtypes, shapes and how each tensor begins; 16 hex digits.

    It does not depend on how many files there are. Not all bytes are read, as those of a large encoder take minutes.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tensor.dtype} {tensor.shape};".encode() + tensor.head())
    return found.hexdigest()[:16]


def _weights(path: Path) -> list[Path]:
    """Returns the files of the weights."""
    if not path.exists():
        raise UserError(f"{path} does not exist; {_GIVE}")
    if path.is_file():
        return [path]
    for name in _WEIGHTS:
        if (path / f"{name}.index.json").is_file():
            return files_named(path / f"{name}.index.json")
        if (path / name).is_file():
            return [path / name]
    found = sorted(path.glob("*t5*.safetensors")) or sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found
    pickles = sorted(file for pattern in _PICKLES for file in path.glob(pattern))
    if not found and pickles:
        raise UserError(
            f"{path} holds only pickles ({listed([file.name for file in pickles])}), which can run any code when they "
            "are read: give the text_encoder folder of the diffusers layout, or ComfyUI's "
            "text_encoders/umt5_xxl_fp16.safetensors"
        )
    there = listed([file.name for file in found])
    raise UserError(f"{path} has {there} where one file of weights should be; {_GIVE}")


def _tensors(files: list[Path]) -> dict[str, StoredTensor]:
    """Returns where every tensor lies, by its name, after the checks of `read_shapes`."""
    result: dict[str, StoredTensor] = {}
    for file in files:
        read_shapes(file)
        with file.open("rb") as stream:
            size = struct.unpack("<Q", stream.read(8))[0]
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        part = {
            name: StoredTensor(
                file=file, dtype=one["dtype"], shape=tuple(one["shape"]), start=8 + size + one["data_offsets"][0]
            )
            for name, one in header.items()
        }
        if twice := result.keys() & part.keys():
            raise UserError(f"{file.parent} holds {listed(sorted(twice))} in two files; keep one set of weights there")
        result |= part
    return result
