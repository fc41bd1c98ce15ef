"""The autoencoder f32t8c128, deep compression: 32x32 px and 8 frames to a position of 128 numbers.

For the scale of a minute of 1080p: 1,441 frames of 1088x1920 px are 369,240 positions. Deep compression learns slowly
without the parameter-free shortcuts around its levels (DC-AE, arXiv 2410.10733). Stages and data are those of f8t4c16;
at full width its step was not compiled yet:
  python -m sora_jax.main --config=configs/autoencoder_f32t8c128.py --config.data.path=DIR --workdir=runs/f32t8c128
"""

from ml_collections import ConfigDict

from configs import autoencoder_f8t4c16

_FULL = {
    "autoencoder.channels": 128,
    "autoencoder.patch": 2,
    "autoencoder.width": 160,
    "autoencoder.multipliers": (1, 2, 4, 4, 8),
    "autoencoder.space_down": (True, True, True, True),
    "autoencoder.time_down": (False, True, True, True),
    "autoencoder.decoder_width": 192,
    "autoencoder.shortcuts": True,
    "autoencoder.linear_heads": True,
    "stages.ae_short.crops.buckets": ((1, 256, 256, 32), (9, 128, 256, 8), (9, 256, 256, 4)),
}
_TOY = {
    "autoencoder.channels": 128,
    "autoencoder.multipliers": (1, 2, 2, 2),
    "autoencoder.space_down": (True, True, True),
    "autoencoder.time_down": (True, True, True),
    "stages.ae_short.crops.buckets": ((1, 64, 64, 10), (9, 64, 64, 2)),
    "stages.ae_long.crops.buckets": ((1, 64, 64, 10), (9, 64, 64, 2), (17, 32, 96, 2)),
    "stages.ae_adversarial.crops.buckets": ((9, 64, 64, 2), (17, 32, 96, 2)),
}


def get_config(size: str = "full") -> ConfigDict:
    """Returns the config of a run that trains the autoencoder alone, of `size` "full" or "toy"."""
    c = autoencoder_f8t4c16.get_config(size)
    c.update_from_flattened_dict({"full": _FULL, "toy": _TOY}[size])
    return c
