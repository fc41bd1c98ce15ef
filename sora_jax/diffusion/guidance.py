"""Classifier-free guidance (arXiv 2207.12598) with an interval and a rescale.

Letters: B rows, L tokens, P patch width, S segments of a row.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError
from sora_jax.diffusion import known


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """How far to go past the conditional prediction; raises UserError on impossible values.

    scale: 1 is the conditional prediction, 0 the unconditional one, above 1 is guidance.
    interval: (low, high) of sigma where guidance applies (arXiv 2404.07724), high included and low not: a step from
        either keeps to one side. Outside it the prediction is the conditional one.
    rescale: share in [0, 1] of the correction of contrast (arXiv 2305.08891, section 3.4), taken over each
        segment where the paper takes an image.
    """

    scale: float
    interval: tuple[float, float]
    rescale: float

    def __post_init__(self):
        low, high = self.interval
        if not 0 <= self.scale < math.inf:
            raise UserError(f"guidance scale {self.scale} is not 0 or more and finite; 1 is no guidance")
        if not 0 <= low <= high <= 1:
            raise UserError(f"guidance interval ({low}, {high}) is not an ordered pair inside [0, 1]")
        if not 0 <= self.rescale <= 1:
            raise UserError(f"guidance rescale {self.rescale} is outside [0, 1]")

    def applies(self, sigma: jax.Array) -> jax.Array:
        """Returns whether noise levels are in the interval, bool of the same shape."""
        low, high = self.interval
        return (sigma > low) & (sigma <= high)


def guide(
    conditional_BLP: jax.Array,
    unconditional_BLP: jax.Array,
    *,
    sigma_BL: jax.Array,
    segment_BL: jax.Array,
    num_segments: int,
    config: GuidanceConfig,
    scale_BL: jax.Array | None = None,
) -> jax.Array:
    """Returns the guided prediction_BLP, float32; predictions are clean tokens or velocities alike.

    scale_BL is the scale of each token's segment; None: that of `config` for all.
    sigma_BL is the level of each token's segment, for the interval. The rescale gives each segment's guided
    prediction the standard deviation of its conditional one; tokens of segment 0 do not count there and are
    not rescaled, so pass known tokens as 0 too.
    """
    conditional_BLP = conditional_BLP.astype(jnp.float32)
    scale = config.scale if scale_BL is None else scale_BL[..., None]
    guided_BLP = unconditional_BLP + scale * (conditional_BLP - unconditional_BLP)
    if config.rescale > 0:
        wanted_BS, given_BS = (_deviation(x_BLP, segment_BL, num_segments) for x_BLP in (conditional_BLP, guided_BLP))
        ratio_BS = wanted_BS / jnp.maximum(given_BS, 1e-12)
        ratio_BL = jnp.where(segment_BL > 0, known.per_token(ratio_BS, segment_BL), 1.0)
        guided_BLP = (config.rescale * ratio_BL + 1 - config.rescale)[..., None] * guided_BLP
    return jnp.where(config.applies(sigma_BL)[..., None], guided_BLP, conditional_BLP)


def _deviation(x_BLP: jax.Array, segment_BL: jax.Array, num_segments: int) -> jax.Array:
    """Returns deviation_BS: the standard deviation over all values of each segment, 0 where absent."""
    mask_BSL = segment_BL[:, None] == jnp.arange(1, num_segments + 1)[:, None]
    count_BS = jnp.maximum(jnp.sum(mask_BSL, axis=-1), 1)

    def mean_BS(value_BLP: jax.Array) -> jax.Array:
        # A masked sum, not a matmul: those round to bfloat16 on a TPU.
        return jnp.sum(mask_BSL * jnp.mean(value_BLP, axis=-1)[:, None], axis=-1) / count_BS

    centre_BL = known.per_token(mean_BS(x_BLP), segment_BL)
    return jnp.sqrt(mean_BS(jnp.square(x_BLP - centre_BL[..., None])))
