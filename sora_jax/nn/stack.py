"""Stacks of equal blocks: one set of stacked weights, one compiled body. All that is special to NNX lives here."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def stack_blocks(make: Callable[[nnx.Rngs], Any], depth: int, rngs: nnx.Rngs) -> Any:
    """Returns one block whose parameters have a leading `layers` axis of size `depth`."""
    keys = jax.random.split(rngs.params(), depth)
    structure, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(keys[0]))))
    state = jax.vmap(lambda key: nnx.split(make(nnx.Rngs(key)))[1])(keys)
    for _, variable in nnx.to_flat_state(state):
        variable.set_metadata(axes=("layers", *variable.get_metadata()["axes"]))
    return nnx.merge(structure, state)


def scan_blocks(blocks: Any, x: jax.Array, apply: Callable[[Any, jax.Array], jax.Array], *, remat: str) -> jax.Array:
    """Returns `x` after every block in turn: `x = apply(block, x)`, as one `lax.scan`.

    Args:
      blocks: The result of `stack_blocks`.
      x: What the blocks transform.
      apply: Applies one block; must not change its module.
      remat: What the backward pass keeps: "none" keeps all, "dots" the matmuls, "full" only the blocks' inputs.
    """
    structure, state = nnx.split(blocks)

    def body(carry: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        return apply(nnx.merge(structure, layer), carry), None

    if REMAT_POLICIES[remat] is not None:
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat])
    return jax.lax.scan(body, x, state)[0]
