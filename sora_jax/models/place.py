"""Where a token stands in its clip, told to it in a form that reads as sentences about motion do.

Shapes: B rows, L tokens, S segments, E width of text features, D width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.rng import Rngs
from sora_jax.models.conditions import pool_text
from sora_jax.nn.gather import gather_level
from sora_jax.nn.linear import Linear


class Place(nnx.Module):
    """A token's place in its segment, alone and as the caption reads it: "moves right" is where to be when.

    The product of place and text makes such a sentence a linear map from one to the other, where attention would have
    to find it first.
    """

    def __init__(self, width: int, *, base_width: int, text_dim: int, rngs: Rngs):
        """`base_width` is as of `TransformerConfig`; the width itself where there is none."""
        self.alone = Linear(PLACE_DIM, width, axes=("patch", "embed"), rngs=rngs)
        self.place = Linear(PLACE_DIM, width, axes=("patch", "embed"), rngs=rngs)
        self.text = Linear(text_dim, width, axes=(None, "embed"), rngs=rngs)
        self.out = Linear(width, width, axes=("embed", None), std=0.02 * (base_width / width) ** 0.5, rngs=rngs)

    def __call__(
        self,
        place_BL3: jax.Array,
        text_BKE: jax.Array,
        text_segment_BK: jax.Array,
        segment_BL: jax.Array,
        segments: int,
    ) -> jax.Array:
        """Returns (B, L, D) float32; place_BL3 is in [0, 1], of up to `segments` in a row."""
        features = place_features(place_BL3)
        pooled_BSE = pool_text(text_BKE, text_segment_BK, segments)
        text_BLD = gather_level(self.text(pooled_BSE), jnp.maximum(segment_BL - 1, 0))
        return self.alone(features) + self.out(self.place(features) * text_BLD)


# Waves of `place_features`: k in {-1, 0, 1}^3 up to sign, at one and two half periods, and four octaves an axis.
_WAVES = [(a, b, c) for a in (0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1) if (a, b, c) > (0, 0, 0)]


PLACE_DIM = 2 * 2 * len(_WAVES)


def place_features(place_BL3: jax.Array) -> jax.Array:
    """Returns sines and cosines of plane waves over a segment's own unit cube, (B, L, PLACE_DIM) float32.

    Joint waves of time and space make "moves right" a linear function of the features.
    """
    waves = jnp.asarray(_WAVES, jnp.float32).T
    phase = jnp.pi * (place_BL3 - 0.5) @ waves
    phase = jnp.concatenate([phase, 2 * phase], axis=-1)
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
