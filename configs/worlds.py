"""Further drawn worlds, to probe what a model has understood: hiding, depth, lasting things, a game, motion.

  python -m sora_jax.main --config=configs/worlds.py --workdir=runs/worlds

About half an hour on two CPU cores. It ends with the probes (docs/evaluation.md), which
`python -m sora_jax.evaluate --workdir=runs/worlds --part=probes` repeats.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config of the further drawn worlds."""
    c = base.get_config()
    c.update_from_flattened_dict(
        {
            "run": ("autoencoder", "prepare", "videos"),
            "shapes.worlds": ("permanence", "parallax", "trail", "game", "physics"),
            "shapes.num_clips": 16384,
            "shapes.caption_faults": None,
            "shapes.sides": ((24, 40),),
            "shapes.frames": (17,),
            "shapes.image_share": 0.0,
            "shapes.fps": (8.0,),
            # Five worlds look less alike than one.
            "autoencoder.channels": 8,
            "data.max_tokens": 75,
            # Where things go is decided where there is much noise.
            "diffusion.noise.mean": 1.0,
            "packing.tokens": 150,
            "packing.text_tokens": 48,
            "packing.segments": 2,
            "packing.rows": 8,
            "stages.autoencoder.steps": 6000,
            "stages.autoencoder.crops.buckets": ((1, 24, 40, 16), (9, 24, 40, 4), (17, 24, 40, 2)),
            "stages.videos.steps": 12000,
            "stages.videos.schedule.learning_rate": 5e-3,
            "stages.videos.mix.images": 0.0,
            "stages.videos.mix.videos": 1.0,
            # Beginnings are given most of the time: that is what probes ask for.
            "stages.videos.known.none": 0.2,
            "stages.videos.known.first": 0.7,
            "stages.videos.known.last": 0.04,
            "stages.videos.known.ends": 0.02,
            "sampling.solver": "dpm",
            "sampling.steps": 12,
            "sampling.guidance.scale": 1.0,
            "sampling.known_guidance": 1.0,
            "sampling.size": (24, 40),
            "sampling.frames": 17,
            "sampling.prompts": (
                "a red circle moves right behind a bar",
                "the camera moves left past a blue square before a wall twice as far",
                "a brush paints a green trail right then down",
                "a yellow ball bounces",
            ),
            "evaluation.prompts": 0,
            "evaluation.tasks": 0,
        }
    )
    return c
