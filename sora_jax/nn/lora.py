"""Low-rank adapters of linear maps (LoRA, arXiv 2106.09685): which maps of a module have one, and what it adds."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.core.rng import Rngs
from sora_jax.core.tree import Params
from sora_jax.nn.linear import Linear

# The last names of the two factors, and of what they are added to.
IN, OUT, KERNEL = "lora_a", "lora_b", "kernel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters of the maps of a block.

    Attributes:
      rank: r, of each; None: there are none.
      alpha: What an adapter adds is multiplied by alpha / rank; None: rank, so by 1.
      targets: A regular expression that matches the whole name of a map within a block, such as "attn1.to_q"; None: all
        maps have one.
    """

    rank: int | None
    alpha: float | None
    targets: str | None

    def __post_init__(self):
        if self.rank is not None and self.rank < 1:
            raise UserError(f"lora: rank {self.rank} must be at least 1, or None for no adapter")
        try:
            re.compile(self.targets or "")
        except re.error as error:
            raise UserError(f"lora: targets {self.targets!r} is no regular expression: {error}") from error

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return 1.0 if self.rank is None or self.alpha is None else self.alpha / self.rank


def adapted(block: Any, config: LoraConfig | None, *, rngs: Rngs) -> Any:
    """Returns `block`, whose targets have adapters now; as it is where there are none.

    Raises UserError where no map is a target.
    """
    if config is None or config.rank is None:
        return block
    maps = dict(_maps(block))
    targets = [name for name in maps if config.targets is None or re.fullmatch(config.targets, name)]
    if not targets:
        raise UserError(
            f"lora: targets {config.targets!r} matches none of the maps of a block, which are {', '.join(maps)}"
        )
    for name in targets:
        maps[name].add_adapter(config.rank, config.scale, rngs=rngs)
    return block


def is_factor(name: str) -> bool:
    """Returns whether a parameter is one of the two factors of an adapter."""
    return name.rpartition(".")[2] in (IN, OUT)


def adapters_of(params: Params) -> list[str]:
    """Returns the names of the maps that have an adapter."""
    return [name.removesuffix(f".{IN}") for name in params if name.endswith(f".{IN}")]


@jax.jit
def add_product(kernel: jax.Array, factor_in: jax.Array, factor_out: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Returns kernel + scale x (factor_in @ factor_out), each (layers, in, out) or without layers; dtype of kernel."""
    product = jax.numpy.matmul(factor_in, factor_out, precision="highest", preferred_element_type=jax.numpy.float32)
    return (kernel.astype(jax.numpy.float32) + scale * product).astype(kernel.dtype)


def _maps(module: Any) -> Iterator[tuple[str, Linear]]:
    """Yields the linear maps of a module by their names in it."""
    for path, part in nnx.iter_graph(module):
        if isinstance(part, Linear):
            yield ".".join(map(str, path)), part
