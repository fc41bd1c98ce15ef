"""Frames that a model is shown beside its noisy latent: channels of a mask and of a latent, for each position.

Public image-to-video models are not given known tokens. All of their tokens are of one noise level, and the input of
each has more channels: [noise | mask | latent]. The mask says for each frame of pixels of a latent frame whether it is
shown; the latent is that of a clip in which all other frames are mid grey. Sampling and training both take it from
here.

Letters: B clips, T H W frames, rows, columns of pixels, t h w of the latent, C channels, M tokens of images, E width.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.video import shapes

# Whether a model can be shown the last frame next to the first.
Last = Literal["never", "may", "must"]
# Frames of pixels that are made grey at once.
_PIECE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownConfig:
    """How a model is shown frames.

    Attributes:
      channels: Of the mask and the latent together.
      last: Whether the last frame is shown, too: must it, so it is in training; may it, in training it is not.
      image_tokens: Tokens of each shown image that attention sees; 0: none.
      image_width: Of such a token.
    """

    channels: int
    last: Last
    image_tokens: int = 0
    image_width: int = 0

    @property
    def images(self) -> int:
        """Images with tokens of a clip."""
        return 0 if not self.image_tokens else 2 if self.last == "must" else 1

    @property
    def tokens(self) -> int:
        """Tokens of all images of a clip."""
        return self.images * self.image_tokens

    def check(self, *, stride: shapes.Size, channels: int) -> None:
        """Raises UserError where the channels are not those of a mask of `stride` and a latent of `channels`."""
        if self.channels != stride[0] + channels:
            raise UserError(
                f"the transformer is given {self.channels} channels beside the noise, and a mask of {stride[0]} frames "
                f"and a latent of {channels} channels are {stride[0] + channels}: take the autoencoder of that model"
            )


class Shown(NamedTuple):
    """What a model is shown of one clip."""

    given_THWC: np.ndarray  # float32, of the latent's positions: the mask, then the normalised latent
    image_ME: np.ndarray | None  # float32; None: the model sees no tokens of images


def shown_frames(frames: int, *, last: bool) -> np.ndarray:
    """Returns shown_T bool: the first frame, and where it is asked for the last."""
    shown_T = np.zeros(frames, bool)
    shown_T[0] = True
    if last:
        shown_T[-1] = True
    return shown_T


def greyed(pixels_BTHWC: np.ndarray, shown_T: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the clips of uint8 pixels as float32 in [-1, 1], frame after frame, 0 (mid grey) where none is shown."""
    for start in range(0, len(shown_T), _PIECE):
        here_T = shown_T[start : start + _PIECE]
        piece = np.zeros((len(pixels_BTHWC), len(here_T), *pixels_BTHWC.shape[2:]), np.float32)
        piece[:, here_T] = pixels_BTHWC[:, start : start + _PIECE][:, here_T].astype(np.float32) / 127.5 - 1.0
        yield piece


def join(latent_THWC: np.ndarray, shown_T: np.ndarray, *, stride: int) -> np.ndarray:
    """Returns given_THWC of the normalised latent of the greyed clip; `stride` are the frames of a latent frame.

    The mask has a channel for each of these. The first latent frame has one frame of pixels, which counts for all.
    """
    t, h, w, _ = latent_THWC.shape
    mask_tS = np.concatenate([np.repeat(shown_T[:1], stride - 1), shown_T]).reshape(t, stride).astype(np.float32)
    mask_THWC = np.broadcast_to(mask_tS[:, None, None], (t, h, w, stride))
    return np.concatenate([mask_THWC, latent_THWC.astype(np.float32)], axis=-1)
