r"""A diffusion transformer of 119 million parameters (width 768, 12 blocks) on tar files of captioned clips.

Hardware: 8 chips of one host; planned for TPU v5e 2x4. Mesh: fsdp over all.
Tokens: rows of 16,384, 32 of them, 0.52 million a step; a clip of at most 8,192 (65 frames of 256x448 px). 100,000
steps on images, 200,000 on videos: 1.6e11 tokens.
Expected MFU: 30 to 40 %, from what published trainers of video transformers reach (docs/sharding.md); not measured on
this config. Steps and rates are untried. All else is that of `dit_s`.

  python -m sora_jax.plan --config=configs/dit_b.py --topology=v5e:2x4
  python -m sora_jax.main --config=configs/dit_b.py --config.data.path=DIR --config.autoencoder.weights=WAN_VAE \
    --workdir=runs/dit_b
"""

from ml_collections import ConfigDict

from configs import dit_s


def get_config() -> ConfigDict:
    """Returns the config."""
    c = dit_s.get_config()
    c.update_from_flattened_dict(
        {
            "transformer.width": 768,
            "transformer.heads": 6,
            "transformer.mlp_width": 3072,
            "data.max_frames": 65,
            "data.max_tokens": 8192,
            "packing.tokens": 16384,
            "packing.text_tokens": 2048,
            "packing.segments": 64,
            "sampling.size": (256, 448),
            "sampling.frames": 65,
        }
    )
    return dit_s.stages(c, clips=32, images=(100_000, 6e-4), videos=(200_000, 6e-4))
