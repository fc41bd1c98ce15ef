"""Shuffling as a function: where a position goes, without the list of all positions."""

import numpy as np

from sora_jax.core import rng

_ROUNDS = 8  # with four, orders of a handful are not equally likely


def shuffle(position_N: np.ndarray, count: int, *, seed: int, name: str, turn: int) -> np.ndarray:
    """Returns where a permutation of range(count) takes each position, int64; (seed, name, turn) choose it.

    So an epoch of any length costs nothing until it is looked at, and only as much of it as is looked at. A Feistel
    network permutes the numbers below the next power of four; what falls outside of range(count) goes through
    again until it falls inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 3).
    """
    assert position_N.size == 0 or 0 <= position_N.min() <= position_N.max() < count, (position_N, count)
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
    keys = rng.generator(seed, name, turn).integers(2**64, size=_ROUNDS, dtype=np.uint64)
    result_N = _permute(position_N.astype(np.uint64), half, keys)
    outside = np.flatnonzero(result_N >= count)
    while outside.size:
        result_N[outside] = _permute(result_N[outside], half, keys)
        outside = outside[result_N[outside] >= count]
    return result_N.astype(np.int64)


def _permute(value_N: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    """Returns a permutation of the numbers of 2 * `half` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left_N, right_N = value_N >> half, value_N & mask
    for key in keys:
        left_N, right_N = right_N, left_N ^ (_scatter(right_N ^ key) & mask)
    return left_N << half | right_N


def _scatter(value_N: np.ndarray) -> np.ndarray:
    """Returns 64 bits that each depend on every bit of the value (the finaliser of SplitMix64)."""
    value_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_N = (value_N ^ (value_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_N ^ (value_N >> np.uint64(31))
