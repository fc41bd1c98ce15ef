"""The toy run with clips of one size and weights split over eight devices: for runs of several processes."""

from ml_collections import ConfigDict

from tests import toy


def get_config() -> ConfigDict:
    """Returns the config of a whole run of few and small programs."""
    c = toy.get_config()
    c.update_from_flattened_dict(
        {
            "run": ("autoencoder", "prepare", "videos"),
            "mesh.data": 1,
            "mesh.fsdp": 8,
            "shapes.num_clips": 48,
            "shapes.sides": ((16, 16),),
            "shapes.image_share": 0.0,
            "stages.autoencoder.steps": 6,
            "stages.autoencoder.crops.buckets": ((5, 16, 16, 8),),
            "stages.prepare.batch": 8,
            "stages.prepare.clips_per_shard": 16,
            "stages.videos.steps": 6,
            "stages.videos.mix.images": 0.0,
            "stages.videos.mix.videos": 1.0,
            "optimizer.name": "adamw",
            "log.every_steps": 1,
            "log.samples_per_stage": 1,
            "sampling.steps": 1,
            "sampling.prompts": None,
            "evaluation.prompts": 4,
            "evaluation.clips": 2,
        }
    )
    return c
