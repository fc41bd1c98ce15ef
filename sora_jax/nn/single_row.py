"""A single row, without the dimension that counts rows."""

from collections.abc import Callable

import jax


def by_token(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Returns `function(*arrays)` of a function that treats each token apart; a single row (1, L, ...) as (L, ...).

    On CPU XLA adds up products over arrays whose first dimension is 1 at a tenth of the speed.
    """
    if arrays[0].shape[0] != 1:
        return function(*arrays)
    return function(*(array[0] for array in arrays))[None]
