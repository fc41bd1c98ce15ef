"""The autoencoder f16t4c48, of the shape of Wan 2.2's: 16x16 px and 4 frames to a position of 48 numbers.

A quarter of the positions of f8t4c16, so longer or larger clips in a row of the transformer; three times the numbers in
each. Stages, data and the toy are those of f8t4c16; at full width its step was not compiled yet:
  python -m sora_jax.main --config=configs/autoencoder_f16t4c48.py --config.data.path=DIR --workdir=runs/f16t4c48
"""

from ml_collections import ConfigDict

from configs import autoencoder_f8t4c16

_FULL = {
    "autoencoder.channels": 48,
    "autoencoder.patch": 2,
    "autoencoder.width": 160,
    "autoencoder.decoder_width": 256,
    "autoencoder.shortcuts": True,
    "autoencoder.linear_heads": False,
}
_TOY = {
    "autoencoder.channels": 48,
    "autoencoder.space_down": (True, True),
}


def get_config(size: str = "full") -> ConfigDict:
    """Returns the config of a run that trains the autoencoder alone, of `size` "full" or "toy"."""
    c = autoencoder_f8t4c16.get_config(size)
    c.update_from_flattened_dict({"full": _FULL, "toy": _TOY}[size])
    return c
