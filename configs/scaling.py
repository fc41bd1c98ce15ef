"""A study of scale in the drawn world: four widths, five budgets, three seeds; the largest budget is predicted.

  python -m sora_jax.scaling --config=configs/scaling.py --workdir=runs/scaling

Under three hours on two CPU cores. Results: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config of the smallest budget at the width of its last rung, and the ladder."""
    c = base.get_config()
    c.update_from_flattened_dict(
        {
            "run": ("autoencoder", "decoder", "prepare", "videos"),
            "shapes.seed": 0,  # the clips are those of all runs
            "shapes.num_clips": 8192,
            "shapes.caption_faults": None,
            # Heads of 16: narrow transformers have several.
            "transformer.width": 128,
            "transformer.heads": 8,
            "transformer.mlp_width": 512,
            # One stage: a budget is one schedule.
            "stages.videos.steps": 80,
            "stages.videos.mix.images": 0.4,
            "stages.videos.mix.videos": 0.6,
            "stages.videos.schedule.learning_rate": 5.2e-3,
            "stages.videos.schedule.warmup_steps": 8,
            "scaling.widths": (48, 64, 96, 128),
            "scaling.depths": (4, 4, 4, 4),
            "scaling.compute": (1.0, 2.0, 4.0, 8.0, 16.0),
            "scaling.seeds": (0, 1, 2),
            "scaling.held_back": 16.0,
            # Held-out clips of the loss. The pictures of the page are those of the last step.
            "evaluation.clips": 128,
            "evaluation.tasks": 0,
            "log.samples_per_stage": 1,
            "checkpoint.every_steps": 1000,
            "checkpoint.keep": 1,
        }
    )
    return c
