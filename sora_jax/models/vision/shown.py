"""What a model is shown of clips, made with its autoencoder and its image encoder (`video/shown.py`)."""

import hashlib

import numpy as np

from sora_jax.models.codec import Codec
from sora_jax.models.vision.clip import ImageEncoder
from sora_jax.video import latents
from sora_jax.video.shown import Shown, ShownConfig, greyed, join, shown_frames


class Shower:
    """Encodes the shown frames of clips.

    Args:
      config: How the model is shown frames.
      codec: Its autoencoder.
      images: Its image encoder; None where it sees no tokens of images.
    """

    def __init__(self, config: ShownConfig, codec: Codec, images: ImageEncoder | None):
        assert (images is not None) == (config.image_tokens > 0), config
        config.check(stride=codec.stride, channels=codec.config.channels)
        self.config = config
        self._codec, self._images = codec, images

    def recipe(self) -> str:
        """Returns what a prepared clip's shown frames depend on besides the autoencoder, in one word."""
        images = "" if self._images is None else self._images.fingerprint()
        return hashlib.sha256(f"{self.config} {images}".encode()).hexdigest()

    def raw(self, pixels_BTHWC: np.ndarray) -> tuple[np.ndarray, list[np.ndarray | None]]:
        """Returns (raw latents, float32 image_ME of each) of uint8 clips as training shows their frames."""
        shown_T = shown_frames(pixels_BTHWC.shape[1], last=self.config.last == "must")
        return self._latents(pixels_BTHWC, shown_T), [self._states(clip) for clip in pixels_BTHWC]

    def of_frames(self, frames: int, first_HWC: np.ndarray, last_HWC: np.ndarray | None) -> Shown:
        """Returns what is shown of a clip of so many frames, uint8 ones that are given."""
        clip_THWC = np.zeros((frames, *first_HWC.shape), np.uint8)
        clip_THWC[0] = first_HWC
        if last_HWC is not None:
            clip_THWC[-1] = last_HWC
        shown_T = shown_frames(frames, last=last_HWC is not None)
        raw = self._latents(clip_THWC[None], shown_T)[0]
        latent = latents.normalise(raw, self._codec.mean_C, self._codec.scale_C)
        return Shown(join(latent, shown_T, stride=self._codec.stride[0]), self._states(clip_THWC))

    def _latents(self, pixels_BTHWC: np.ndarray, shown_T: np.ndarray) -> np.ndarray:
        return np.concatenate(list(self._codec.encode_stream(greyed(pixels_BTHWC, shown_T))), axis=1)

    def _states(self, clip_THWC: np.ndarray) -> np.ndarray | None:
        """Returns image_ME of the first frame, and of the last where the model sees both."""
        if self._images is None:
            return None
        ends = clip_THWC[[0, -1][: self.config.images]]
        return np.concatenate([self._images.encode(image) for image in ends])
