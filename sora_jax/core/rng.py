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


class Rngs:
    """Keys of a module's initial values, one after the other: those of `flax.nnx.Rngs`, which counts in an array.

    Under `jax.eval_shape` flax asks each count for its sharding, and jax, which has none, prints the program so far
    into its answer: most of the time that an abstract model then takes.

    Args:
      key: PRNG key, or the seed of one.
    """

    def __init__(self, key: jax.Array | int):
        self._key = jax.random.key(key) if isinstance(key, int) else key
        self._given = 0

    def params(self) -> jax.Array:
        """Returns the next key."""
        self._given += 1
        return jax.random.fold_in(self._key, self._given - 1)
