r"""A diffusion transformer of 2,051,266,624 parameters (width 2048, 30 blocks), and 103 million of its text encoder.

Hardware: 64 TPU v5p (4x4x4). Mesh: fsdp=16, data over the rest. 2048 over 16 is 128, the lanes of a TPU: split further,
XLA gathers weights by all-reduces of twice the bytes. On a v6e of 31 GiB `transformer.remat` is "full".
Tokens: rows of 65,536, one to a chip (64: 4.2 million a step); a clip of at most 32,768 (81 frames of 480x832 px are
32,760). 50,000 steps on images, 100,000 on videos: 6.3e11 tokens.
Expected MFU: 40 to 50 %, from what published trainers of video transformers reach (docs/sharding.md); not measured on
this config. Steps and rates are untried. All else is that of `dit_s`.

  python -m sora_jax.plan --config=configs/dit_2b.py --topology=v5p:4x4x4
  python -m sora_jax.main --config=configs/dit_2b.py --config.data.path=DIR --config.autoencoder.weights=WAN_VAE \
    --workdir=runs/dit_2b

With clips beside (docs/control.md), here edges of half the size beside half of the clips: rows of 81,920 tokens hold as
many clips as before with them, and steps see as many.
  python -m sora_jax.plan --config=configs/dit_2b.py:edges --topology=v5p:4x4x4 --stage=videos

A row of 1,048,576 tokens, each over 64 chips:
  python -m sora_jax.plan --config=configs/dit_2b.py --topology=v5p:4x4x8 --stage=videos --config.mesh.fsdp=2 \
    --config.mesh.sequence=64 --config.transformer.exchange=ring --config.packing.rows=2 \
    --config.packing.tokens=1048576 --config.data.max_tokens=1048576
"""

from typing import Any

from ml_collections import ConfigDict

from configs import dit_s


def get_config(beside: str = "") -> ConfigDict:
    """Returns the config; `beside` are kinds of clips that half of the clips are given, such as "edges+boxes"."""
    c = dit_s.get_config()
    c.update_from_flattened_dict(
        {
            "transformer.width": 2048,
            "transformer.heads": 16,
            "transformer.depth": 30,
            "transformer.mlp_width": 8192,
            "text.width": 1024,
            "text.depth": 8,
            "text.heads": 8,
            "data.max_frames": 81,
            "data.max_tokens": 32768,
            "packing.tokens": 65536,
            "packing.text_tokens": 8192,
            "packing.segments": 128,
            "packing.rows": 64,
            "mesh.data": None,
            "mesh.fsdp": 16,
            "optimizer.name": "adamw",
            "optimizer.b1": 0.9,
            "sampling.size": (480, 832),
            "sampling.frames": 81,
        }
    )
    c = dit_s.stages(c, clips=256, images=(50_000, 2e-4), videos=(100_000, 1e-4))
    return with_context(c, beside) if beside else c


def with_context(c: Any, beside: str) -> ConfigDict:
    """Returns the config with clips beside of half the size, that see themselves alone, in the stage of videos."""
    kinds = beside.split("+")
    c.context.kinds, c.context.blind = tuple(kinds), True
    c.packing.tokens += c.packing.tokens * len(kinds) // 4
    c.stages.videos.context = ConfigDict({"none": 0.5, beside: 0.5})
    return c
