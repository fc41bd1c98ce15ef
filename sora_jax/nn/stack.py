"""Stacks of equal blocks: one set of stacked weights, one compiled body. All that is special to NNX lives here."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from sora_jax.core import debugging
from sora_jax.core.rng import Rngs
from sora_jax.nn.flash import KEPT

# A loop copies what its body reads and keeps: so few blocks are laid out one after the other instead. When debugging,
# all are: an error then names the block.
_FEW = 4
# What a block begins with.
_INPUT = "block input"
# What jax calls the forward pass of cuDNN's attention.
_CUDNN = "dot_product_attention_fwd"
_policies = jax.checkpoint_policies
_named_attention = _policies.save_only_these_names(KEPT)


def _attention(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
    """Whether a value is a result of attention: of our kernels, which name it, or of cuDNN."""
    return primitive.name.startswith(_CUDNN) or bool(_named_attention(primitive, *arguments, **parameters))


# What the backward pass keeps; it computes the rest again. From most memory to least.
REMAT_POLICIES: dict[str, Any] = {
    "none": None,  # everything
    "dots": _policies.save_from_both_policies(_policies.dots_with_no_batch_dims_saveable, _attention),  # and attention
    "attention": _attention,  # results of attention, inputs of blocks
    "full": _policies.nothing_saveable,  # inputs of blocks
    "offload": _policies.save_and_offload_only_these_names(  # inputs of blocks, in the memory of the host
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def stack_blocks(make: Callable[[Rngs], Any], depth: int, rngs: Rngs) -> Any:
    """Returns one block whose parameters have a leading `layers` axis of size `depth`."""
    keys = jax.random.split(rngs.params(), depth)
    structure, _ = nnx.split(nnx.eval_shape(lambda: make(Rngs(keys[0]))))
    state = jax.vmap(lambda key: nnx.split(make(Rngs(key)))[1])(keys)
    for _, variable in nnx.to_flat_state(state):
        variable.set_metadata(axes=("layers", *variable.get_metadata()["axes"]))
    return nnx.merge(structure, state)


def scan_blocks(blocks: Any, x: jax.Array, apply: Callable[[Any, jax.Array], jax.Array], *, remat: str) -> jax.Array:
    """Returns `x` after every block in turn: `x = apply(block, x)`, as one loop where they are many.

    Args:
      blocks: The result of `stack_blocks`.
      x: What the blocks transform.
      apply: Applies one block; must not change its module.
      remat: What the backward pass keeps, a key of `REMAT_POLICIES`.
    """
    structure, state = nnx.split(blocks)

    def body(carry: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        return apply(nnx.merge(structure, layer), checkpoint_name(carry, _INPUT)), None

    if REMAT_POLICIES[remat] is not None:
        # A loop already keeps the compiler from merging what is computed again with what was computed first.
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
    depth = jax.tree.leaves(state)[0].shape[0]
    return jax.lax.scan(body, x, state, unroll=(depth <= _FEW and remat == "none") or debugging.is_on())[0]


def map_blocks(blocks: Any, x: Any, kept: Any, apply: Callable[[Any, Any, Any], tuple[Any, Any]]) -> tuple[Any, Any]:
    """Returns `x` after every block in turn, and what each gave: `x, given = apply(block, x, kept of the block)`.

    Arrays of `kept`, and of what is given, have a leading axis of blocks. Nothing is computed again for gradients.
    """
    structure, state = nnx.split(blocks)

    def body(carry: Any, layer: Any) -> tuple[Any, Any]:
        weights, mine = layer
        return apply(nnx.merge(structure, weights), carry, mine)

    depth = jax.tree.leaves(state)[0].shape[0]
    return jax.lax.scan(body, x, (state, kept), unroll=depth <= _FEW or debugging.is_on())
