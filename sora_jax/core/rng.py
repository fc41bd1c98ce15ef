"""Named randomness: a key is a pure function of (seed, name, numbers), so nothing has to be stored."""

import hashlib

import jax
import numpy as np


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def key(seed: int, name: str, *numbers: int | jax.Array) -> jax.Array:
    """Returns the PRNG key of `name` at `numbers` (a step, a row, a request) under `seed`."""
    result = jax.random.fold_in(jax.random.key(seed), _number(name))
    for number in numbers:
        result = jax.random.fold_in(result, number)
    return result


def generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """Returns the numpy counterpart of `key`, for the data plane."""
    return np.random.default_rng([seed, _number(name), *numbers])
