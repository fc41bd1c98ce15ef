r"""A diffusion transformer of 14,272,762,944 parameters: the shape of Wan 14B (width 5120, 40 blocks) on long rows.

Hardware: 512 TPU v5p (8x8x8). Mesh: tensor=4, fsdp=8, data over the rest; a row for every 4 chips.
Tokens: rows of 81,920, 128 of them, 10.5 million a step; a clip fills a row at most (81 frames of 720x1280 px are
75,600). 30,000 steps on images, 50,000 on videos: 8.4e11 tokens.
Expected MFU: 40 to 50 %, from what published trainers of video transformers reach (docs/sharding.md); not measured on
this config. Steps and rates are untried. All else is that of `dit_2b`.

  python -m sora_jax.plan --config=configs/dit_14b.py --topology=v5p:8x8x8
  python -m sora_jax.main --config=configs/dit_14b.py --config.data.path=DIR --config.autoencoder.weights=WAN_VAE \
    --workdir=runs/dit_14b
"""

from ml_collections import ConfigDict

from configs import dit_2b, dit_s


def get_config() -> ConfigDict:
    """Returns the config."""
    c = dit_2b.get_config()
    c.update_from_flattened_dict(
        {
            "transformer.width": 5120,
            "transformer.heads": 40,
            "transformer.depth": 40,
            "transformer.mlp_width": 13824,
            "data.max_tokens": 81920,
            "packing.tokens": 81920,
            "packing.rows": 128,
            "mesh.fsdp": 8,
            "mesh.tensor": 4,
            "sampling.size": (720, 1280),
        }
    )
    return dit_s.stages(c, clips=128, images=(30_000, 1e-4), videos=(50_000, 5e-5))
