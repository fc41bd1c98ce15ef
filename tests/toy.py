"""A run of seconds: the base config at toy size, for tests."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config of a whole run that takes seconds."""
    c = base.get_config()
    c.update_from_flattened_dict(
        {
            "run": ("autoencoder", "prepare", "images", "videos"),
            "shapes.num_clips": 96,
            "shapes.sides": ((16, 16), (16, 24)),
            "shapes.frames": (5,),
            "shapes.caption_faults": None,
            "data.max_frames": 5,
            "data.min_tokens": 1,
            "data.max_tokens": 24,
            "autoencoder.patch": 4,
            "autoencoder.width": 8,
            "autoencoder.multipliers": (1, 1, 1),
            "autoencoder.space_down": (False, False),
            "autoencoder.time_down": (True, True),
            "autoencoder.blocks": 1,
            "autoencoder.decoder_width": 8,
            "autoencoder.decoder_blocks": 1,
            "autoencoder.channels": 4,
            "autoencoder.attention": False,
            "transformer.patch": (1, 2, 2),
            "transformer.width": 16,
            "transformer.depth": 1,
            "transformer.heads": 2,
            "transformer.mlp_width": 16,
            "transformer.frequency_dim": 16,
            "text.width": 16,
            "text.depth": 1,
            "text.heads": 2,
            "text.max_tokens": 24,
            "packing.tokens": 36,
            "packing.text_tokens": 96,
            "packing.segments": 9,
            "packing.rows": 8,
            "packing.window": 64,
            "optimizer.name": "muon",
            "stages.autoencoder.optimizer.name": "adamw",
            "stages.autoencoder.steps": 8,
            "stages.autoencoder.schedule.learning_rate": 4e-3,
            "stages.autoencoder.crops.buckets": ((1, 16, 16, 8), (5, 16, 16, 8)),
            "stages.prepare.batch": 2,
            "stages.prepare.clips_per_shard": 32,
            "stages.images.steps": 6,
            "stages.videos.steps": 8,
            "checkpoint.every_steps": 3,
            "checkpoint.keep": 2,
            "log.every_steps": 2,
            "log.samples_per_stage": 2,
            "log.validate_every": 0,
            "sampling.steps": 2,
            "sampling.size": (16, 16),
            "sampling.frames": 5,
            "sampling.fps": 8.0,
            "evaluation.prompts": 8,
            "evaluation.clips": 8,
            "evaluation.tasks": 0,
        }
    )
    return c
