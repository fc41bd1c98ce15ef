"""The base chain on a folder of real clips with captions.

  python -m sora_jax.main --config=configs/folder.py --config.data.path=DIR --workdir=runs/mine
  python -m sora_jax.main --config=configs/folder.py:images --config.data.path=DIR --workdir=runs/mine

DIR holds mp4, mkv, webm, avi, mov, mpg, gif, png, jpg or webp files, and captions in captions.jsonl ({"file",
"caption"}), captions.csv (file,caption), captions.parquet or a .txt beside each file. What is made as it trains are
captions of these clips.

By itself the config is for videos: images serve the autoencoder alone. `:images` is for a folder of images alone, and
`:both` trains on a fourth of images. The widths are those of the base config, so this runs on two CPU cores in some
twenty minutes and shows the way, not quality (few clips are learnt by heart): widen `autoencoder`, `transformer` and
`data.max_tokens`, and lengthen the stages, for a model worth having.
"""

from ml_collections import ConfigDict

from configs import base

# Windows of the autoencoder: frames, height, width, clips.
_STILL, _MOVING = ((1, 32, 32, 16),), ((5, 32, 32, 8), (9, 32, 32, 4))
_KINDS = {
    "videos": {"stages.videos.mix.images": 0.0, "stages.videos.mix.videos": 1.0},
    "both": {"stages.videos.mix.images": 0.25, "stages.videos.mix.videos": 0.75},
    "images": {
        "stages.autoencoder.crops.buckets": ((1, 32, 32, 32),),
        "stages.videos.mix.images": 1.0,
        "stages.videos.mix.videos": 0.0,
        "sampling.size": (88, 136),
        "sampling.frames": 1,
    },
}


def get_config(kind: str = "videos") -> ConfigDict:
    """Returns the config of a run on a folder of "videos", "images" or "both"; ValueError for another word."""
    c = base.get_config()
    c.update_from_flattened_dict(
        {
            "run": ("autoencoder", "prepare", "videos"),
            "data.source": "folder",
            # One second at 8 frames per second, at some 40x72 px: at the rates of most files it would be a third.
            "data.fps": 8.0,
            "data.max_frames": 9,
            "data.max_tokens": 192,
            # Real clips have more in them than drawn ones.
            "autoencoder.channels": 12,
            "text.max_tokens": 64,
            "packing.tokens": 576,  # three clips of data.max_tokens, or four of 16:9
            "packing.text_tokens": 320,
            "packing.segments": 24,
            "packing.rows": 2,
            "stages.autoencoder.crops.buckets": (*_STILL, *_MOVING),
            "stages.autoencoder.steps": 2600,
            "stages.prepare.batch": 4,
            "stages.videos.steps": 2400,
            "sampling.size": (40, 72),
            "sampling.frames": 9,
            "sampling.prompts": None,
            "evaluation.clips": 16,
        }
    )
    c.update_from_flattened_dict(base.variant(_KINDS, kind))
    return c
