"""What the compiler is asked for."""

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core import compiling
from sora_jax.core.compiling import run_once


def test_a_program_that_runs_once_gives_the_same():
    def normal(key):
        return jnp.tanh(jax.random.normal(key, (64, 3)))

    assert run_once(), "there is something to ask for on CPU"
    hasty = jax.jit(normal, compiler_options=run_once())(jax.random.key(1))
    np.testing.assert_allclose(hasty, jax.jit(normal)(jax.random.key(1)), rtol=1e-5)


def test_elsewhere_nothing_is_asked_for(monkeypatch):
    monkeypatch.setattr(compiling, "current_platform", lambda: "tpu")
    assert run_once() == {}
