"""The base chain on a folder of real clips and images with captions.

  python -m sora_jax.main --config=configs/folder.py --config.data.path=DIR --workdir=runs/mine

DIR holds mp4, mkv, webm, avi, mov, mpg, gif, png, jpg or webp files, and captions in captions.jsonl ({"file",
"caption"}), captions.csv (file,caption), captions.parquet or a .txt beside each file. The widths are those of the base
config, so this runs on two CPU cores in some twenty minutes and shows the way, not quality: widen `autoencoder`,
`transformer` and `data.max_tokens`, and lengthen the stages, for a model worth having.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config of a run on a folder."""
    c = base.get_config()
    stages: Any = c.stages
    with c.unlocked():
        stages.warmup = stages.images  # of videos as well: a folder need not have images
        del stages.images
    c.run = ("autoencoder", "prepare", "warmup", "videos")
    c.update_from_flattened_dict(
        {
            "data.source": "folder",
            "data.max_frames": 17,
            "data.max_tokens": 192,
            "text.max_tokens": 64,
            "packing.tokens": 512,
            "packing.text_tokens": 320,
            "packing.segments": 24,
            "packing.rows": 4,
            "stages.autoencoder.crops.buckets": ((1, 32, 32, 16), (9, 32, 32, 4), (17, 32, 32, 2)),
            "stages.prepare.batch": 4,
            "stages.warmup.mix.images": 0.0,
            "stages.warmup.mix.videos": 1.0,
            "stages.warmup.steps": 400,
            "stages.warmup.schedule.learning_rate": 5e-3,
            "stages.autoencoder.steps": 2600,
            "stages.videos.mix.images": 0.0,
            "stages.videos.mix.videos": 1.0,
            "stages.videos.steps": 800,
            "stages.videos.schedule.learning_rate": 4e-3,
            "sampling.size": (48, 80),
            "sampling.frames": 9,
            "sampling.prompts": (
                "a white dog walks along a park road",
                "a car drives along a street",
                "a person walks in a store",
            ),
            "evaluation.clips": 16,
        }
    )
    return c
