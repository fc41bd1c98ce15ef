"""Which dtype the matmuls use: bfloat16 on accelerators, float32 on CPU, or as the config says."""

from typing import Literal

import jax
import jax.numpy as jnp

Precision = Literal["float32", "bfloat16"]


def compute_dtype(name: Precision | None) -> jnp.dtype:
    """Returns the dtype of activations and matmuls; None means bfloat16 on accelerators and float32 on CPU.

    Parameters, norms, softmax, modulation, losses, EMA and optimizer stay float32 whatever this is.
    """
    if name is None:
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
