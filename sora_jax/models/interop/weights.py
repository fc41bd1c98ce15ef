"""Public weights as files: safetensors, one file or several with an index, as diffusers saves them."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from sora_jax.core.errors import UserError

# Parameters by name on the host: a large model fits no single device, so whoever loads it also places it.
HostParams = dict[str, np.ndarray]

# The file in which diffusers keeps the weights of a folder.
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Names in a message; a network has hundreds.
_MOST_NAMED = 3
_GIVE = "give one .safetensors file, or a model's folder of diffusers"
_PICKLES = (".pth", ".pt", ".ckpt", ".bin")


def read_weights(path: str | Path, *, remedy: str = _GIVE) -> dict[str, np.ndarray]:
    """Returns every array of one safetensors file or of a folder of them.

    UserError where there is none (which ends in `remedy`), one is damaged, or the path is a pickle.
    """
    # bfloat16 is known to numpy once jax has been imported, which the models do.
    return _read(Path(path), load_file, remedy=remedy)


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of what `read_weights` returns, from the heads of the files alone."""

    def shapes(file: Path) -> dict[str, tuple[int, ...]]:
        with safe_open(file, framework="numpy") as part:
            names = part.keys()
            return {name: tuple(part.get_slice(name).get_shape()) for name in names}

    return _read(Path(path), shapes)


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


def _read(path: Path, read: Callable[[Path], dict[str, Any]], *, remedy: str = _GIVE) -> dict[str, Any]:
    """Returns what `read` returns of every file of `path`, together."""
    result: dict[str, Any] = {}
    for file in _files(path):
        if not file.is_file():
            raise UserError(f"{file} does not exist; {remedy}")
        try:
            part = read(file)
        except SafetensorError as error:
            raise UserError(f"{file} is not a whole safetensors file ({error}); download it again") from error
        if twice := result.keys() & part.keys():
            raise UserError(f"{path} holds {listed(sorted(twice))} in two files; keep one set of weights there")
        result |= part
    return result


def _files(path: Path) -> list[Path]:
    if path.suffix in _PICKLES:
        raise UserError(
            f"{path} is a pickle, which can run any code when it is read; save what torch.load(..., weights_only=True) "
            "gives with safetensors.torch.save_file, and give that file"
        )
    if path.suffix == ".safetensors" or path.is_file():
        return [path]
    if (index := path / f"{WEIGHTS}.index.json").is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return [path / Path(name).name for name in sorted(names)]
    return [path / WEIGHTS]
