r"""A diffusion transformer of 607 million parameters (width 1152, 28 blocks, of DiT-XL) on rows of 32,768 tokens.

Heads are 128 wide, which fills the lanes of a TPU's matrix unit; DiT-XL has 72.
Hardware: 16 chips or more; planned for TPU v5p 2x2x4. Mesh: fsdp over all.
Tokens: rows of 32,768, 64 of them, 2.1 million a step; a clip of at most 16,384 (81 frames of 320x576 px are 15,120).
50,000 steps on images, 100,000 on videos: 3.1e11 tokens.
Expected MFU: 35 to 45 %, from what published trainers of video transformers reach (docs/sharding.md); not measured on
this config. Steps and rates are untried. All else is that of `dit_s`.

  python -m sora_jax.plan --config=configs/dit_xl.py --topology=v5p:2x2x4
  python -m sora_jax.main --config=configs/dit_xl.py --config.data.path=DIR --config.autoencoder.weights=WAN_VAE \
    --workdir=runs/dit_xl
"""

from ml_collections import ConfigDict

from configs import dit_s


def get_config() -> ConfigDict:
    """Returns the config."""
    c = dit_s.get_config()
    c.update_from_flattened_dict(
        {
            "transformer.width": 1152,
            "transformer.heads": 9,
            "transformer.depth": 28,
            "transformer.mlp_width": 4608,
            "data.max_frames": 81,
            "data.max_tokens": 16384,
            "packing.tokens": 32768,
            "packing.text_tokens": 4096,
            "packing.segments": 128,
            "packing.rows": 64,
            "sampling.size": (320, 576),
            "sampling.frames": 81,
        }
    )
    return dit_s.stages(c, clips=64, images=(50_000, 4e-4), videos=(100_000, 4e-4))
