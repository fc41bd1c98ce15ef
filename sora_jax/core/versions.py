"""Which libraries wrote a checkpoint, a record or a table: a result that changes may be due to them."""

import functools
import platform
from collections.abc import Mapping
from importlib import metadata

_DISTRIBUTIONS = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "orbax-checkpoint": "orbax-checkpoint",
    "optax": "optax",
    "grain": "grain",
    "numpy": "numpy",
    "av": "av",
    "sora_jax": "sora-jax",
}
# Those whose change may change a bit of the weights; the others only move bytes.
_DECISIVE = ("jax", "jaxlib", "optax", "sora_jax")


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions of python and of the libraries that training rests on, by name."""
    return {"python": platform.python_version(), **{n: _version(d) for n, d in _DISTRIBUTIONS.items()}}


def own_version() -> str:
    """Returns the version of this package."""
    return _version(_DISTRIBUTIONS["sora_jax"])


def _version(distribution: str) -> str:
    """Returns the version of an installed distribution; of one that is only on the path, as a checkout can be, none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Returns in words what of `old` is another version in `new` and may change bits; "" where nothing is."""
    changed = [name for name in _DECISIVE if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name, 'unknown')} is now {new.get(name, 'unknown')}" for name in changed)
