"""The base chain on a folder of real clips with captions.

  python -m sora_jax.main --config=configs/folder.py --config.data.path=DIR --workdir=runs/mine

DIR holds mp4, mkv, webm, avi, mov, mpg, gif, png, jpg or webp files, and captions in captions.jsonl ({"file",
"caption"}), captions.csv (file,caption), captions.parquet or a .txt beside each file. The widths are those of the base
config, so this runs on two CPU cores in some twenty minutes and shows the way, not quality: widen `autoencoder`,
`transformer` and `data.max_tokens`, and lengthen the stages, for a model worth having.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config of a run on a folder."""
    c = base.get_config()
    c.update_from_flattened_dict(
        {
            "run": ("autoencoder", "prepare", "videos"),
            "data.source": "folder",
            # One second at 8 frames per second, at some 48x80 px: at the rates of most files it would be a third.
            "data.fps": 8.0,
            "data.max_frames": 9,
            "autoencoder.channels": 12,
            "data.max_tokens": 192,
            "text.max_tokens": 64,
            "packing.tokens": 512,
            "packing.text_tokens": 320,
            "packing.segments": 24,
            "packing.rows": 2,
            "stages.autoencoder.crops.buckets": ((1, 32, 32, 16), (5, 32, 32, 8), (9, 32, 32, 4)),
            "stages.autoencoder.steps": 2600,
            "stages.prepare.batch": 4,
            # Videos alone: a folder need not have images.
            "stages.videos.mix.images": 0.0,
            "stages.videos.mix.videos": 1.0,
            "stages.videos.steps": 3000,
            "sampling.size": (48, 80),
            "sampling.frames": 9,
            "sampling.prompts": None,
            "evaluation.clips": 16,
        }
    )
    return c
