"""What a clip beside is to the one that is made, told to its tokens by a vector of its role.

Shapes: B rows, L tokens, S segments, A clips beside a segment at most, R roles, D width.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.data.packing.packs import groups_beside
from sora_jax.nn.attention import Alone
from sora_jax.nn.gather import gather_level
from sora_jax.video.parts import ROLES

# The vectors of roles, by their name in the transformer: of no public model, and trained with adapters.
VECTORS = "roles.vectors"


class Parts(NamedTuple):
    """Which tokens of a row are of clips beside, and what these are."""

    part_BL: jax.Array  # int32: 0 for tokens of what is made, 1...A for those of clips beside
    role_BSA: jax.Array  # int32: the role of each clip beside, a value of `ROLES`; 0 where there is none


def parts_of(pack: Mapping[str, jax.Array]) -> Parts | None:
    """Returns the parts of a pack; None where it has no clips beside."""
    return Parts(pack["part_BL"], pack["role_BSA"]) if "part_BL" in pack else None


def alone_in(parts: Parts, segment_BL: jax.Array) -> Alone:
    """Returns the clips beside as tokens that see their own clip alone."""
    _, slots, most = parts.role_BSA.shape
    return Alone(groups_beside({"segment_BL": segment_BL, **parts._asdict()}), slots * most)


class Roles(nnx.Module):
    """A vector for each role, zero at first: a model that is taught to look at clips beside begins as it was."""

    def __init__(self, width: int):
        self.vectors = nnx.Param(jnp.zeros((len(ROLES), width), jnp.float32), axes=(None, "embed"))

    def __call__(self, parts: Parts, segment_BL: jax.Array) -> jax.Array:
        """Returns (B, L, D) float32: of a token of a clip beside its vector, of others zeros."""
        part_BL, role_BSA = parts
        vectors_BXD = self.vectors[...][role_BSA.reshape(len(role_BSA), -1)]
        column_BL = jnp.maximum(segment_BL - 1, 0) * role_BSA.shape[2] + jnp.maximum(part_BL - 1, 0)
        return jnp.where(part_BL[..., None] > 0, gather_level(vectors_BXD, column_BL), 0.0)
