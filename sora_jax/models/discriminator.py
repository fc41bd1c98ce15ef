"""The judge of the adversarial stage: it tells drawn-back clips from real ones, patch by patch in space and time.

Shapes: B clips, T H W frames, rows, columns, C channels. All of it is float32, whatever the autoencoder computes in.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.core.rng import Rngs
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sora_jax.nn import conv
from sora_jax.nn.conv import Past

_LEAK = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Shape of the discriminator.

    Attributes:
      width: Channels of the first level; each further level has twice as many.
      levels: Halvings of height and width; a verdict is on patches of about 2^(levels + 3) px and 2 levels + 5 frames.
    """

    width: int
    levels: int

    def __post_init__(self):
        if min(self.width, self.levels) < 1:
            raise UserError(f"discriminator: width {self.width} and levels {self.levels} must be 1 or more")


class Discriminator(nnx.Module):
    """A 3D patch discriminator (arXiv 1611.07004, with time): clip -> a verdict for each patch, real above 0."""

    def __init__(self, config: DiscriminatorConfig, *, rngs: Rngs):
        dims = [config.width * 2**level for level in range(config.levels + 1)]
        self.conv_in = conv.CausalConv(3, dims[0], rngs=rngs)
        self.levels = nnx.List([conv.CausalConv(a, b, stride=2, rngs=rngs) for a, b in itertools.pairwise(dims)])
        self.norms = nnx.List([conv.ChannelNorm(dim) for dim in dims[1:]])
        self.conv_out = conv.CausalConv(dims[-1], 1, rngs=rngs)

    @jax.named_scope("discriminator")
    def __call__(self, clip_BTHWC: jax.Array) -> jax.Array:
        past = Past(is_whole=True)
        x = self.conv_in(clip_BTHWC.astype(jnp.float32), past)
        for level, norm in zip(self.levels, self.norms, strict=True):
            x = norm(level(jax.nn.leaky_relu(x, _LEAK), past))
        return self.conv_out(jax.nn.leaky_relu(x, _LEAK), past)


class AdversarialAutoencoder(Autoencoder):
    """The autoencoder with its judge beside it, so that one state and one step train both."""

    def __init__(self, config: AutoencoderConfig, judge: DiscriminatorConfig, *, rngs: Rngs):
        super().__init__(config, rngs=rngs)
        self.discriminator = Discriminator(judge, rngs=rngs)
