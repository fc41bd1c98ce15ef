"""The drawn world larger: up to 64 px, 17 frames, two objects, an occluder; a wider model, more steps.

  python -m sora_jax.main --config=configs/shapes.py --workdir=runs/shapes

One to two hours on two CPU cores, minutes on a GPU. Results: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config of the larger drawn world."""
    c = base.get_config()
    c.update_from_flattened_dict(
        {
            "data.max_tokens": 320,
            "shapes.num_clips": 16384,
            "shapes.caption_faults": None,
            "shapes.sides": ((32, 32), (48, 48), (64, 64), (32, 56), (56, 32)),
            "shapes.frames": (5, 9, 17),
            "shapes.max_objects": 2,
            "shapes.occluder": True,
            "text.depth": 2,
            "packing.tokens": 320,
            "packing.text_tokens": 160,
            "packing.segments": 16,
            "packing.rows": 4,
            "transformer.width": 160,
            "transformer.depth": 5,
            "transformer.heads": 5,
            "transformer.mlp_width": 640,
            "stages.autoencoder.steps": 2400,
            # The shortest clips move fastest: without windows of 5 frames they come back as a cross-fade.
            "stages.autoencoder.crops.buckets": ((1, 32, 32, 16), (5, 32, 32, 8), (9, 32, 32, 8)),
            "stages.decoder.steps": 240,
            "stages.decoder.crops.buckets": ((5, 32, 32, 8), (17, 32, 32, 8)),
            "stages.images.steps": 2000,
            "stages.images.schedule.learning_rate": 4e-3,
            "stages.videos.steps": 8000,
            "stages.videos.schedule.learning_rate": 3e-3,
            "sampling.shift_base_tokens": 8.0,
            "sampling.size": (64, 64),
            "sampling.frames": 17,
            "sampling.prompts": (
                "a red circle moves right on a dark background",
                "a blue square moves up on a light background",
                "a yellow triangle moves left on a grey background behind a bar",
                "a green circle moves down and a purple square moves up on a dark background",
            ),
        }
    )
    return c
