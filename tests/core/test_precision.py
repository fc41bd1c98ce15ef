"""The dtype of the computation."""

import jax.numpy as jnp

from sora_jax.core.precision import compute_dtype


def test_the_backend_decides_unless_told():
    assert compute_dtype(None) == jnp.float32, "tests run on CPU"
    assert compute_dtype("bfloat16") == jnp.bfloat16
    assert compute_dtype("float32") == jnp.float32
