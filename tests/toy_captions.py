"""A captioner of seconds: `configs/captions.py` at toy size, for tests."""

from ml_collections import ConfigDict

from configs import base
from tests import toy


def get_config() -> ConfigDict:
    """Returns the config of a whole run that trains a captioner."""
    c = toy.get_config()
    flat = base.schedule(5e-3, warmup_steps=1, decay_share=0.0, final_share=1.0)
    with c.unlocked():
        c.run = ("autoencoder", "prepare", "caption_images", "caption_videos")
        c.update(
            stages={
                "caption_images": base.captioner_stage(steps=4, schedule=flat, images=1.0),
                "caption_videos": base.captioner_stage(steps=4, schedule=flat, images=0.25),
            }
        )
    c.captioner.update(width=16, depth=1, heads=2, mlp_width=16, unimodal=1, multimodal=1, local_width=8, embedding=8)
    return c
