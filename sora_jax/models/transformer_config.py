"""The shape of the transformer, and how it is computed."""

import dataclasses
import math

from sora_jax.core.errors import UserError
from sora_jax.nn.attention import check_backend
from sora_jax.nn.lora import LoraConfig
from sora_jax.nn.stack import REMAT_POLICIES


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of the transformer.

    Attributes:
      patch: Latent positions of one token over (time, height, width).
      width: D; a multiple of `heads`.
      base_width: The width at which learning rates were found, of which those of this width are made (`nn.scaling`);
        heads and `mlp_width` grow with the width. None: rates are those of this width.
      depth: Number of blocks.
      heads: Attention heads.
      mlp_width: Hidden width of the feed-forward.
      frequency_dim: Sinusoidal features of a noise level.
      rope_theta: Base of the rotary wavelengths.
      time_rate: Time positions per second of video.
      attention: A key of `nn.attention.BACKENDS`, or "auto".
      exchange: How keys that are spread over devices come to the queries, one of `nn.attention.EXCHANGES`.
      remat: What the backward pass keeps, a key of `nn.stack.REMAT_POLICIES`.
      pooled_text: Whether the pooled text of a segment also enters its modulation (Wan: no).
      place_features: Whether each token is also told its place in the segment, see `Place` (Wan: no).
      text_pad_to: Text tokens that each segment's are padded to with zeros, which count as text (Wan: 512). They are
        one key, counted as often as they are. None: a segment sees its own text alone.
      given_channels: Channels of each latent position that are given beside the noisy ones; None: none.
      image_dim: Width of the tokens of a given image that attention to the text sees apart; None: it sees none.
      image_positions: Such tokens of a segment that have a learned embedding of their place; None: they have none.
      lora: Adapters of the blocks' maps; None: none.
    """

    patch: tuple[int, int, int]
    width: int
    base_width: int | None
    depth: int
    heads: int
    mlp_width: int
    frequency_dim: int
    rope_theta: float
    time_rate: float
    attention: str
    exchange: str
    remat: str
    pooled_text: bool
    place_features: bool
    text_pad_to: int | None
    given_channels: int | None
    image_dim: int | None
    image_positions: int | None
    lora: LoraConfig | None

    def __post_init__(self):
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(
                f"transformer: width {self.width} over {self.heads} heads is not an even head width; "
                f"nearest: width {max(1, round(self.width / self.heads / 2)) * 2 * self.heads}"
            )
        if self.base_width is not None:
            self._check_base(self.base_width)
        if self.patch[0] != 1:
            raise UserError(
                f"transformer: patch {self.patch} covers {self.patch[0]} latent frames; it must be 1, because the "
                "first latent frame stands for one frame and the others for more"
            )
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"transformer: remat {self.remat!r} is none of {', '.join(REMAT_POLICIES)}")
        if self.image_positions is not None and self.image_dim is None:
            raise UserError(
                f"transformer: image_positions {self.image_positions} without image_dim: there are no image tokens"
            )
        check_backend(self.attention, self.exchange)

    def at_base_width(self) -> "TransformerConfig":
        """Returns the shape at `base_width`, whose rates are its own."""
        base = self.base_width or self.width
        heads, mlp_width = base * self.heads // self.width, base * self.mlp_width // self.width
        return dataclasses.replace(self, width=base, base_width=None, heads=heads, mlp_width=mlp_width)

    def _check_base(self, base: int) -> None:
        head = self.width // self.heads
        if base % head:
            raise UserError(
                f"transformer: base_width {base} is not a multiple of the head width {head}, which is the same at all "
                f"widths: there are more heads; {self.heads} heads of {head} are right for a base_width of "
                f"{max(1, round(base / head)) * head}"
            )
        if base * self.mlp_width % self.width:
            raise UserError(
                f"transformer: mlp_width {self.mlp_width} at width {self.width} is none at base_width {base}: make it "
                f"a multiple of the width, such as {max(1, round(self.mlp_width / self.width)) * self.width}"
            )

    @property
    def given_width(self) -> int:
        """C, of what a token is given beside its noise; 0 where nothing is."""
        return math.prod(self.patch) * (self.given_channels or 0)
