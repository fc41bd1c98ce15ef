"""The shape of a Wan transformer: in our config, in its own, and in the names of its tensors."""

import dataclasses
import math
from typing import Any

from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model
from sora_jax.models.interop.variants import ROPE_THETA, TEXT_TOKENS
from sora_jax.models.interop.wan_names import Layout, Name, block_names, rest_names, their_shape
from sora_jax.models.transformer import Transformer
from sora_jax.models.transformer_config import TransformerConfig

# What of their config our block fixes, and to what.
CLASSES = ("WanTransformer3DModel", "WanModel")
FIXED = {"qk_norm": "rms_norm_across_heads", "cross_attn_norm": True, "eps": 1e-6}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanShape:
    """Shape of a Wan transformer.

    Attributes:
      patch: Latent positions of a token over (time, height, width).
      width: D.
      mlp_width: Hidden width of the feed-forward.
      heads: Attention heads.
      depth: Blocks.
      in_channels: Of a latent position, noise and what is given: a mask and a latent, or nothing.
      out_channels: Of a latent position, of the prediction.
      text_dim: Width of the text's states.
      frequency_dim: Sinusoids of a noise level.
      image_dim: Width of the tokens of an image; None: the model takes none.
      image_positions: Of such tokens that have an embedding each; None: they have none.
      layout: Of the names of its tensors.
    """

    patch: tuple[int, int, int]
    width: int
    mlp_width: int
    heads: int
    depth: int
    in_channels: int
    out_channels: int
    text_dim: int
    frequency_dim: int
    image_dim: int | None
    image_positions: int | None
    layout: Layout

    @classmethod
    def of(
        cls, config: TransformerConfig, *, patch_width: int, text_dim: int, layout: Layout = "diffusers"
    ) -> "WanShape":
        """Returns the shape of one of our transformers; parts that Wan lacks are not looked at, see `inexpressible`."""
        out_channels = patch_width // math.prod(config.patch)
        return cls(
            patch=config.patch,
            width=config.width,
            mlp_width=config.mlp_width,
            heads=config.heads,
            depth=config.depth,
            in_channels=out_channels + (config.given_channels or 0),
            out_channels=out_channels,
            text_dim=text_dim,
            frequency_dim=config.frequency_dim,
            image_dim=config.image_dim,
            image_positions=config.image_positions,
            layout=layout,
        )

    @property
    def patch_width(self) -> int:
        """Numbers of a token's noise and of its prediction: what `Transformer` is built with."""
        return math.prod(self.patch) * self.out_channels

    def config(
        self, *, time_rate: float, remat: str, attention: str = "auto", exchange: str = "gather"
    ) -> TransformerConfig:
        """Returns our config with Wan's numbers.

        Args:
          time_rate: Time positions per second. Wan counts latent frames, so it is frames per second over temporal
            stride: 16 / 4 = 4 for Wan 2.1 and for 2.2 A14B, 24 / 4 = 6 for Wan 2.2 TI2V.
          remat: What the backward pass keeps, a key of `nn.stack.REMAT_POLICIES`.
          attention: As in the config.
          exchange: As in the config.
        """
        given = self.in_channels - self.out_channels
        return TransformerConfig(
            patch=self.patch,
            width=self.width,
            base_width=None,
            depth=self.depth,
            heads=self.heads,
            mlp_width=self.mlp_width,
            frequency_dim=self.frequency_dim,
            rope_theta=ROPE_THETA,
            time_rate=time_rate,
            attention=attention,
            exchange=exchange,
            remat=remat,
            pooled_text=False,
            place_features=False,
            text_pad_to=TEXT_TOKENS,
            given_channels=given or None,
            image_dim=self.image_dim,
            image_positions=self.image_positions,
            lora=None,
        )

    def names(self) -> dict[str, tuple[Name, tuple[str, ...]]]:
        """Returns by our name (the row of the table, their names: one, or one of each block)."""
        image, positions = self.image_dim is not None, self.image_positions is not None
        table: dict[str, tuple[Name, tuple[str, ...]]] = {
            name.ours: (name, (name.theirs(self.layout),)) for name in rest_names(image=image, positions=positions)
        }
        for name in block_names(image=image):
            theirs = name.theirs(self.layout)
            table[f"blocks.{name.ours}"] = (name, tuple(f"blocks.{i}.{theirs}" for i in range(self.depth)))
        return table

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each tensor by its foreign name."""
        ours = self.our_shapes()
        result = {}
        for our, (name, theirs) in self.names().items():
            stacked = our.startswith("blocks.")
            result |= dict.fromkeys(theirs, their_shape(ours[our][stacked:], name.form, patch=self.patch))
        return result

    def our_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each of our parameters by its name."""
        config = self.config(time_rate=1.0, remat="none")
        _, params, _ = abstract_model(
            lambda key: Transformer(config, patch_width=self.patch_width, text_dim=self.text_dim, rngs=Rngs(key))
        )
        return {name: tuple(value.shape) for name, value in params.items()}


def inexpressible(config: TransformerConfig) -> list[str]:
    """Returns what programs that read Wan's weights would not compute alike, in words."""
    problems = []
    if config.pooled_text or config.place_features:
        problems.append("Wan has no pooled_text and no place_features")
    if config.rope_theta != ROPE_THETA:
        problems.append(f"rope_theta is {config.rope_theta:g}, and Wan's is {ROPE_THETA:g}")
    if config.text_pad_to != TEXT_TOKENS:
        problems.append(f"text_pad_to is {config.text_pad_to}, and Wan pads every prompt to {TEXT_TOKENS}")
    return problems


def foreign_config(shape: WanShape) -> dict[str, Any]:
    """Returns the config.json that belongs to weights of `shape.layout`."""
    if shape.layout == "diffusers":
        return {
            "_class_name": CLASSES[0],
            **FIXED,
            "patch_size": list(shape.patch),
            "num_attention_heads": shape.heads,
            "attention_head_dim": shape.width // shape.heads,
            "num_layers": shape.depth,
            "ffn_dim": shape.mlp_width,
            "freq_dim": shape.frequency_dim,
            "in_channels": shape.in_channels,
            "out_channels": shape.out_channels,
            "text_dim": shape.text_dim,
            "image_dim": shape.image_dim,
            "added_kv_proj_dim": None if shape.image_dim is None else shape.width,
            "pos_embed_seq_len": shape.image_positions,
            "rope_max_seq_len": 1024,
        }
    given = "t2v" if shape.in_channels == shape.out_channels else "i2v"
    return {
        "_class_name": CLASSES[1],
        "model_type": given if shape.image_positions is None else "flf2v",
        "dim": shape.width,
        "eps": FIXED["eps"],
        "ffn_dim": shape.mlp_width,
        "freq_dim": shape.frequency_dim,
        "in_dim": shape.in_channels,
        "num_heads": shape.heads,
        "num_layers": shape.depth,
        "out_dim": shape.out_channels,
        "text_len": TEXT_TOKENS,
    }
