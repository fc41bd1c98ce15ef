"""Entries of a table by token, in the way that is fast where it runs."""

import jax
import jax.numpy as jnp

from sora_jax.core.mesh import current_platform


def gather_level(table_BGD: jax.Array, level_BL: jax.Array) -> jax.Array:
    """Returns the entry of each token's noise level, (B, L, D)."""
    platform = current_platform()
    if platform == "cpu":
        return gather_in_float32(table_BGD, level_BL)
    return gather_by_index(table_BGD, level_BL) if platform == "gpu" else gather_by_product(table_BGD, level_BL)


def gather_in_float32(table_BGD: jax.Array, level_BL: jax.Array) -> jax.Array:
    """Returns the same, and a gradient that is added up token by token.

    It is added up in the dtype that is read: bfloat16 would stop counting at 256.
    """
    found_BLD = jnp.take_along_axis(table_BGD.astype(jnp.float32), level_BL[..., None], axis=1)
    return found_BLD.astype(table_BGD.dtype)


def gather_by_product(table_BGD: jax.Array, level_BL: jax.Array) -> jax.Array:
    """Returns the same by a product with ones and zeros, which is exact.

    A TPU gathers row by row, and adds up gradients row by row, in the dtype of the table. The product is some
    hundredths of a block's, and its gradient is added up in float32.
    """
    return jnp.einsum("BLG,BGD->BLD", _ones(table_BGD, level_BL), table_BGD, precision="highest")


@jax.custom_vjp
def gather_by_index(table_BGD: jax.Array, level_BL: jax.Array) -> jax.Array:
    """Returns the same, read where it is used, and the gradient of `gather_by_product`.

    A GPU finds the table in its cache: what is gathered then never lies in its memory, as the result of a product does.
    """
    return jnp.take_along_axis(table_BGD, level_BL[..., None], axis=1, mode="clip")


def _index_forward(table_BGD: jax.Array, level_BL: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return gather_by_index(table_BGD, level_BL), (table_BGD, level_BL)


def _index_backward(kept: tuple[jax.Array, jax.Array], gradient_BLD: jax.Array) -> tuple[jax.Array, None]:
    return jnp.einsum("BLG,BLD->BGD", _ones(*kept), gradient_BLD, precision="highest"), None


gather_by_index.defvjp(_index_forward, _index_backward)


def _ones(table_BGD: jax.Array, level_BL: jax.Array) -> jax.Array:
    """Returns a one for each token's noise level, (B, L, G)."""
    return jax.nn.one_hot(level_BL, table_BGD.shape[1], dtype=table_BGD.dtype)
