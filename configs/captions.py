"""A captioner: it learns to describe the clips of the drawn world, to tell which caption belongs to which clip, and to
write short prompts out.

  python -m sora_jax.main --config=configs/captions.py --workdir=runs/captions

It reads latents, as the transformer does, so the autoencoder comes first. For clips of your own take over
`data`, `packing` and the autoencoder of the config that you train with.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config of the captioner of the drawn world."""
    c = base.get_config()
    c.update(
        captioner_loss={"expand_share": 0.15},  # what `sample --expand=runs/captions` needs
        shapes={"caption_faults": None},  # it learns to say all
    )
    with c.unlocked():
        c.run = ("autoencoder", "prepare", "caption_images", "caption_videos")
        c.update(
            stages={
                "caption_images": base.captioner_stage(
                    steps=200,
                    schedule=base.schedule(4e-3, warmup_steps=60, decay_share=0.01, final_share=1.0),
                    images=1.0,
                ),
                "caption_videos": base.captioner_stage(
                    steps=1050,
                    schedule=base.schedule(4e-3, warmup_steps=60, decay_share=0.5, final_share=0.02),
                    images=0.25,
                ),
            }
        )
    return c
