"""The leaves of a state by name, as they lie in a checkpoint: params/blocks.attn.to_q.kernel."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core.compiling import run_once
from sora_jax.core.distributed import to_host
from sora_jax.core.errors import NumericsError
from sora_jax.core.tree import PyTree

# Names that a message lists; a mistake in a config touches either few leaves or most of them.
_MOST_NAMED = 8


def by_name(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by the names on their way, joined by slashes."""
    return {
        "/".join(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def nested(tree: PyTree) -> dict[str, Any]:
    """The same leaves in plain dicts, so that what is on disk depends on names and not on Python classes."""
    return nest(by_name(tree))


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns leaves by name as plain dicts in each other."""
    result: dict[str, Any] = {}
    for name, leaf in named.items():
        *way, last = name.split("/")
        node = result
        for part in way:
            node = node.setdefault(part, {})
        node[last] = leaf
    return result


def form(leaf: Any) -> str:
    """Returns the dtype and shape of an array or of what stands for one: float32[8, 16]."""
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def leaf_differences(saved: Mapping[str, Any], wanted: Mapping[str, Any], *, whole: bool) -> list[str]:
    """Returns what differs between the leaves of a checkpoint and those of a config, by name.

    With `whole` the checkpoint may have no others either.
    """
    lines = [f"{name} is not in the checkpoint" for name in wanted.keys() - saved.keys()]
    if whole:
        lines += [f"{name} is not in this config's state" for name in saved.keys() - wanted.keys()]
    for name in wanted.keys() & saved.keys():
        old, new = form(saved[name]), form(wanted[name])
        if old != new:
            lines.append(f"{name} is {old} in the checkpoint and {new} in this config")
    return sorted(lines)


def first_lines(lines: list[str]) -> str:
    """Returns the first few of many lines, and how many more there are."""
    more = f"; and {len(lines) - _MOST_NAMED} more" if len(lines) > _MOST_NAMED else ""
    return "; ".join(lines[:_MOST_NAMED]) + more


def refuse_non_finite(state: PyTree, *, what: str) -> None:
    """Raises NumericsError naming the floating leaves of `state` (global jax arrays) that are not finite.

    Every process must call it. Compiled once for each structure; nothing is donated.
    """
    floating = {n: leaf for n, leaf in by_name(state).items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
    if not floating:
        return
    finite = to_host(_finite()(list(floating.values())))
    bad = [name for name, good in zip(floating, finite, strict=True) if not good]
    if bad:
        raise NumericsError(
            f"{what} is not finite, so it is not saved: {first_lines(bad)}; the last checkpoint is older and whole: "
            "start again from there with a lower learning rate, or look at the data of the steps since"
        )


@functools.cache
def _finite() -> Callable[[list[jax.Array]], jax.Array]:
    """Returns the jitted leaves -> which are finite; not made on import, as options ask for the platform."""

    def finite(leaves: list[jax.Array]) -> jax.Array:
        # Zero times what is not finite is no number; a sum takes half as long to compile as a conjunction.
        return jnp.isfinite(jnp.stack([jnp.sum(0 * leaf, dtype=jnp.float32) for leaf in leaves]))

    return jax.jit(finite, compiler_options=run_once())
