"""A run of seconds that trains the autoencoder alone, in two stages, the second with a discriminator."""

from ml_collections import ConfigDict

from configs import base
from tests import toy


def get_config() -> ConfigDict:
    """Returns the config of such a run."""
    c = toy.get_config()
    stages = ConfigDict({name: stage for name, stage in c.to_dict()["stages"].items() if name != "autoencoder"})
    rate = base.schedule(1e-2, warmup_steps=2, decay_share=0.5, final_share=0.1)
    stages.first = base.autoencoder_stage(steps=8, schedule=rate, buckets=((5, 16, 16, 8),))
    stages.second = base.autoencoder_stage(steps=6, schedule=rate, buckets=((5, 16, 16, 8),), adversarial=0.1)
    with c.unlocked():
        c.stages = stages
    c.run = ("first", "second")
    c.discriminator.width = 4
    return c
