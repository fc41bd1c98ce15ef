"""Implementations of others that ours is compared with; they come with the extra `parity`.

Letters: T H W frames, rows, columns, C channels.
"""

import importlib
from typing import Any

import numpy as np

from sora_jax.core.errors import UserError


def peer(name: str) -> Any:
    """Returns the module of that name; UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f'speed is compared with {name}, which is not here: pip install -e ".[parity]"') from error


class WanPeer:
    """The autoencoder of Wan 2.1 as diffusers has it, of random weights, which it saves to `folder`."""

    def __init__(self, width: int, folder: str):
        self._torch = peer("torch")
        self._torch.manual_seed(0)
        self._model = peer("diffusers").AutoencoderKLWan(base_dim=width).eval()
        self._model.save_pretrained(folder)

    def encode(self, clip_THWC: np.ndarray) -> np.ndarray:
        """Returns the latent (t, h, w, C) of a uint8 clip."""
        clip = self._to_torch(clip_THWC.astype(np.float32) / 127.5 - 1.0)
        with self._torch.no_grad():
            return self._to_numpy(self._model.encode(clip).latent_dist.mean)

    def decode(self, latent_THWC: np.ndarray) -> np.ndarray:
        """Returns the clip (T, H, W, 3), float32 in [-1, 1], of a latent."""
        with self._torch.no_grad():
            return self._to_numpy(self._model.decode(self._to_torch(latent_THWC)).sample)

    def _to_torch(self, x_THWC: np.ndarray) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(x_THWC.transpose(3, 0, 1, 2)[None]))

    def _to_numpy(self, x: Any) -> np.ndarray:
        return x.numpy()[0].transpose(1, 2, 3, 0)
