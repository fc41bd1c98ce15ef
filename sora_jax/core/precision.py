"""Which dtype the matmuls use: bfloat16 on accelerators, float32 on CPU, or as the config says."""

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_dtype(name: str | None) -> jnp.dtype:
    """Returns the dtype of activations and matmuls; None means bfloat16 on accelerators and float32 on CPU.

    Parameters, norms, softmax, modulation, losses, EMA and optimizer stay float32 whatever this is.
    """
    if name is None:
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in _DTYPES:
        raise UserError(f"precision {name!r} is none of {', '.join(_DTYPES)}")
    return jnp.dtype(_DTYPES[name])
