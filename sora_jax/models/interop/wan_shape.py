"""The shape of a public Wan transformer, by the heads of its files."""

import dataclasses
import re
from pathlib import Path

from sora_jax.models.interop.weights import read_shapes
from sora_jax.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanShape:
    """Shape of a transformer."""

    width: int
    mlp_width: int
    heads: int
    depth: int
    in_channels: int
    out_channels: int
    text_dim: int
    frequency_dim: int
    patch: tuple[int, int, int]
    image_dim: int | None
    image_positions: int | None
    layout: str

    def config(self, *, time_rate, attention="auto", exchange="gather", remat="none") -> TransformerConfig:
        """Returns our config."""
        return TransformerConfig(
            patch=self.patch,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_width=self.mlp_width,
            frequency_dim=self.frequency_dim,
            rope_theta=10_000.0,
            time_rate=time_rate,
            attention=attention,
            exchange=exchange,
            remat=remat,
            pooled_text=False,
            place_features=False,
            text_pad_to=512,
            given_channels=self.in_channels - self.out_channels or None,
            image_dim=self.image_dim,
            image_positions=self.image_positions,
        )


def describe_wan(path: str | Path) -> WanShape:
    """Returns the shape of a transformer."""
    shapes = read_shapes(path)
    d = "condition_embedder.time_proj.weight" in shapes

    def g(a: str, b: str) -> tuple[int, ...]:
        return shapes[a if d else b]

    pe = shapes["patch_embedding.weight"]
    depth = max(int(m[1]) for n in shapes if (m := re.match(r"blocks\.(\d+)\.", n))) + 1
    img = "condition_embedder.image_embedder.ff.net.0.proj.weight" if d else "img_emb.proj.1.weight"
    pos = "condition_embedder.image_embedder.pos_embed" if d else "img_emb.emb_pos"
    return WanShape(
        width=pe[0],
        heads=max(1, pe[0] // 128),
        depth=depth,
        in_channels=pe[1],
        patch=pe[2:],
        mlp_width=g("blocks.0.ffn.net.0.proj.weight", "blocks.0.ffn.0.weight")[0],
        out_channels=g("proj_out.weight", "head.head.weight")[0] // (pe[2] * pe[3] * pe[4]),
        text_dim=g("condition_embedder.text_embedder.linear_1.weight", "text_embedding.0.weight")[1],
        frequency_dim=g("condition_embedder.time_embedder.linear_1.weight", "time_embedding.0.weight")[1],
        image_dim=shapes[img][1] if img in shapes else None,
        image_positions=shapes[pos][1] if pos in shapes else None,
        layout="diffusers" if d else "original",
    )
