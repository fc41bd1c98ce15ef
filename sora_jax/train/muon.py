"""Muon: momentum made orthogonal, for matrices and convolutions.

The rule is that of optax.contrib.muon (arXiv 2502.16982). What differs is how it is computed: the iteration needs the
tall matrix only through the products of its short side, so for a matrix twice as tall as wide, or more, it runs on
those alone. That is the same polynomial with a third of the arithmetic for the kernels of convolutions, whose long side
is 27 times their channels.

Letters: X matrices (layers), M short side, N long side.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sora_jax.core.tree import Axes

# Quintic coefficients of the Newton-Schulz iteration, as Jordan et al. 2024 chose them, and its number of steps. Four
# bring singular values down to a hundredth of the norm into the range below, the usual five to a 300th.
_COEFFICIENTS, _STEPS = (3.4445, -4.7750, 2.0315), 4
# Size of an update against the square root of the longer side: that of Adam (arXiv 2502.16982, section 2.2).
_RMS = 0.2


def scale_by_muon(axes: Axes, *, decay: float) -> optax.GradientTransformation:
    """Returns Nesterov momentum -> orthogonal matrices of the size of Adam's updates, for kernels with these axes."""

    def orthogonal(update: Any, _: Any) -> Any:
        return {
            name: kernel
            if isinstance(kernel, optax.MaskedNode)
            else of_kernel(kernel, layers=axes[name][0] == "layers")
            for name, kernel in update.items()
        }

    return optax.chain(optax.trace(decay, nesterov=True), optax.stateless(orthogonal))


def of_kernel(kernel: jax.Array, *, layers: bool) -> jax.Array:
    """Returns the orthogonal update of a kernel: all its dimensions but the last (and the layers) are rows."""
    stacked = kernel.shape[0] if layers else 1
    matrices = kernel.reshape(stacked, -1, kernel.shape[-1])
    scale = _RMS * math.sqrt(max(matrices.shape[1:]))
    tall = matrices.shape[1] > matrices.shape[2]
    flat = matrices.mT if tall else matrices
    made = orthogonalise(flat)
    return scale * (made.mT if tall else made).reshape(kernel.shape)


def orthogonalise(matrix_XMN: jax.Array) -> jax.Array:
    """Returns about U V^T of each matrix U S V^T with M <= N: its singular values are drawn into about [0.7, 1.2]."""
    short, long = matrix_XMN.shape[1:]
    norm = jnp.sqrt(jnp.sum(jnp.square(matrix_XMN), axis=(1, 2), keepdims=True))
    x = matrix_XMN / (norm + 1e-8)
    a, b, c = _COEFFICIENTS
    if long < 2 * short:
        for _ in range(_STEPS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x
    # Every step multiplies by a polynomial of the gram matrix, and these commute: gather them, apply them once.

    def factor_of(gram: jax.Array) -> jax.Array:
        return a * jnp.eye(short, dtype=x.dtype) + b * gram + c * gram @ gram

    gram = x @ x.mT
    gathered = factor = factor_of(gram)
    for _ in range(_STEPS - 1):
        gram = factor @ gram @ factor
        factor = factor_of(gram)
        gathered = factor @ gathered
    return gathered @ x
