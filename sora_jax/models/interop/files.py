"""Weights of others, from safetensors files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sora_jax.core.errors import UserError

# Names in a message; a network has hundreds.
_MOST_NAMED = 3


def read_safetensors(path: Path, *, remedy: str) -> dict[str, np.ndarray]:
    """Returns every array of a file by its name; UserError, which ends in `remedy` where there is no such file."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; {remedy}")
    try:
        # bfloat16 is known to numpy once jax has been imported, which every model here does.
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); download it again") from error


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
