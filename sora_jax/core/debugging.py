"""Finds what went wrong at the place where it did, at the cost of speed: what `main --debug` switches on.

On is what `jax_debug_nans` is, so JAX_DEBUG_NANS=1 does the same.
"""

import contextlib

import jax


def switch_on() -> None:
    """Raises FloatingPointError from now on at the operation that makes a NaN; call it before anything is compiled."""
    jax.config.update("jax_debug_nans", True)


def is_on() -> bool:
    """Returns whether programs are to be built for debugging: nothing donated, blocks one after the other."""
    return bool(jax.config.values["jax_debug_nans"])


def no_transfers() -> contextlib.AbstractContextManager[object]:
    """Refuses implicit transfers between host and devices inside, where debugging is on."""
    return jax.transfer_guard("disallow") if is_on() else contextlib.nullcontext()
