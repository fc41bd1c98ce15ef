"""Public weights as files: safetensors, one file or several with an index, as diffusers saves them.

Weights come from strangers. A safetensors file is a JSON header and bytes, so that reading it runs nothing; whatever
else a file is, by its name or by how it begins, is refused unread.
"""

import dataclasses
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from sora_jax.core.errors import UserError

# Parameters by name on the host: a large model fits no single device, so whoever loads it also places it.
HostParams = dict[str, np.ndarray]

# The file in which diffusers keeps the weights of a folder.
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
# Names in a message; a network has hundreds.
_MOST_NAMED = 3
_GIVE = "give one .safetensors file, or a model's folder of diffusers"
_PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle")
# How a pickle of any protocol, the zip of one that torch writes, and numpy's files, which may hold one, begin.
_CODE = re.compile(rb"\x80[\x01-\x05]|PK\x03\x04|\x93NUMPY|[(cl\]}]")
_LONGEST_HEADER = 10**8  # bytes; the limit of the format
# Those that weights of transformers come in, by the names of the format.
FLOAT_TYPES: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
# Those of the format that numpy knows and that say what they mean without scales in other arrays.
_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})


def read_weights(path: str | Path, *, remedy: str = _GIVE) -> dict[str, np.ndarray]:
    """Returns every array of one safetensors file or of a folder of them.

    UserError where there is none (which ends in `remedy`), one is damaged or of a type not read here, or one is a
    pickle, by name or by content.
    """
    # bfloat16 is known to numpy once jax has been imported, which the models do.
    return _read(Path(path), _arrays, remedy=remedy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """Where one array of a file lies, unread.

    Attributes:
      file: That holds it.
      kind: Its type, in the words of the format, such as "BF16".
      shape: Its shape.
      offset: Of its first byte in the file.
    """

    file: Path
    kind: str
    shape: tuple[int, ...]
    offset: int

    @property
    def dtype(self) -> np.dtype:
        """Its dtype; KeyError for one of `kind` that `FLOAT_TYPES` lacks."""
        return np.dtype(FLOAT_TYPES[self.kind])

    def open(self) -> np.ndarray:
        """Returns the array as a map of the file: what is not read of it takes no memory."""
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


def read_headers(path: str | Path, *, remedy: str = _GIVE) -> dict[str, Stored]:
    """Returns where the arrays of one safetensors file, or of a folder of them, lie, from the heads of the files alone.

    UserError as `read_weights`, but types are not looked at.
    """

    def headers(file: Path) -> dict[str, Stored]:
        with safe_open(file, framework="numpy"):
            pass  # it checks that the head is in order, and the file as long as that says
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            head = json.loads(stream.read(length))
        head.pop("__metadata__", None)
        return {
            name: Stored(
                file=file,
                kind=one["dtype"],
                shape=tuple(one["shape"]),
                offset=8 + length + one["data_offsets"][0],
            )
            for name, one in head.items()
        }

    return _read(Path(path), headers, remedy=remedy)


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of what `read_weights` returns, from the heads of the files alone."""
    return {name: stored.shape for name, stored in read_headers(path).items()}


def pick(
    weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], *, what: str, remedy: str
) -> dict[str, np.ndarray]:
    """Returns the arrays that `shapes` names, float32; what else a file holds is left.

    UserError names what is missing or of another shape, after `what` and before `remedy`.
    """
    missing = [name for name in shapes if name not in weights]
    wrong = [
        f"{name} is {weights[name].shape} instead of {shape}"
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    if faults := [f"{name} is missing" for name in missing] + wrong:
        more = f" and {len(faults) - _MOST_NAMED} more" if len(faults) > _MOST_NAMED else ""
        raise UserError(f"{what}: {', '.join(faults[:_MOST_NAMED])}{more}; {remedy}")
    return {name: np.asarray(weights[name], np.float32) for name in shapes}


def check_names(*, found: Iterable[str], wanted: Iterable[str], what: str, remedy: str) -> None:
    """Raises UserError that lists the names in which two sets differ."""
    missing, surplus = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or surplus:
        raise UserError(f"{what}: missing {listed(missing)}; not known {listed(surplus)}; {remedy}")


def listed(names: list[str]) -> str:
    """Returns the names, or how many there are and the first few."""
    if not names:
        return "none"
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:6])} and {len(names) - 6} more"


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """Returns every array of one file, after a look at the types of all."""
    with safe_open(file, framework="numpy") as part:
        names = part.keys()
        types = {name: part.get_slice(name).get_dtype() for name in names}
    if others := {kind: name for name, kind in types.items() if kind not in _DTYPES}:
        kind, name = min(others.items())
        raise UserError(
            f"{file} has {name} as {kind}, which is not read here: save it as F32 or BF16, and give that file"
        )
    return load_file(file)


def _read(path: Path, read: Callable[[Path], dict[str, Any]], *, remedy: str = _GIVE) -> dict[str, Any]:
    """Returns what `read` returns of every file of `path`, together."""
    result: dict[str, Any] = {}
    for file in _files(path):
        if not file.is_file():
            raise UserError(f"{file} does not exist; {remedy}")
        try:
            _check_content(file)
            part = read(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is not a whole safetensors file ({error}); download it again") from error
        if twice := result.keys() & part.keys():
            raise UserError(f"{path} holds {listed(sorted(twice))} in two files; keep one set of weights there")
        result |= part
    return result


def _check_content(file: Path) -> None:
    """Raises UserError for what does not begin as the format does: the length of the header, then JSON."""
    with file.open("rb") as stream:
        head = stream.read(9)
    if len(head) == 9 and struct.unpack_from("<Q", head)[0] <= _LONGEST_HEADER and head[8:] == b"{":
        return
    if _CODE.match(head):
        raise UserError(_refusal(file, "holds"))
    raise UserError(f"{file} is not a whole safetensors file (it begins {head!r}); download it again")


def _refusal(path: Path, verb: str = "is") -> str:
    """Returns the sentence for a file whose name or content is that of a pickle."""
    return (
        f"{path} {verb} a pickle, which can run any code when it is read; save what torch.load(..., weights_only=True) "
        "gives with safetensors.torch.save_file, and give that file"
    )


def _files(path: Path) -> list[Path]:
    if path.suffix.lower() in _PICKLES:
        raise UserError(_refusal(path))
    if path.suffix == ".safetensors" or path.is_file():
        return [path]
    if (index := path / f"{WEIGHTS_FILE}.index.json").is_file():
        return files_named(index)
    if not (path / WEIGHTS_FILE).is_file():
        return [_only_one(path)]
    return [path / WEIGHTS_FILE]


def _only_one(folder: Path) -> Path:
    """Returns the one safetensors file of a folder without those of diffusers, or where that should be."""
    found = sorted(folder.glob("*.safetensors"))
    if len(found) > 1:
        raise UserError(
            f"{folder} holds {listed([file.name for file in found])} without {WEIGHTS_FILE}.index.json: download that "
            "index too, or give one file"
        )
    pickles = sorted(file for file in folder.glob("*") if file.suffix.lower() in _PICKLES)
    if pickles and not found:
        raise UserError(_refusal(pickles[0]))
    return found[0] if found else folder / WEIGHTS_FILE


def files_named(index: Path) -> list[Path]:
    """Returns the files that an index names, sorted, whatever their folders: they lie beside it, or nowhere."""
    try:
        names = {Path(name).name for name in json.loads(index.read_text())["weight_map"].values()}
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{index} is damaged ({error}); download it again") from error
    if not names:
        raise UserError(f"{index} names no file; download it again")
    if pickles := sorted(name for name in names if Path(name).suffix.lower() in _PICKLES):
        raise UserError(_refusal(index.parent / pickles[0]))
    return [index.parent / name for name in sorted(names)]
