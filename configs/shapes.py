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
            "shapes.sides": ((32, 32), (48, 48), (64, 64), (32, 56), (56, 32)),
            "shapes.frames": (5, 9, 17),
            "shapes.max_objects": 2,
            "shapes.occluder": True,
            "text.max_tokens": 32,
            "packing.tokens": 320,
            "packing.text_tokens": 320,
            "packing.segments": 20,
            "transformer.width": 192,
            "transformer.depth": 6,
            "transformer.heads": 6,
            "transformer.mlp_width": 768,
            "stages.autoencoder.steps": 3000,
            "stages.images.steps": 4000,
            "stages.videos.steps": 8000,
        }
    )
    return c
