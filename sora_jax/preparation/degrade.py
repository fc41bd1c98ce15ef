"""A smaller and slower form of a clip, spoiled as what models make and what cameras record is spoiled.

A refiner that was trained on clean small clips alone takes the faults of a base model for details (arXiv 2210.02303,
section 2.5; the further degradations are those of unCLIP's enlargers, arXiv 2204.06125).

Letters: T H W C pixels.
"""

import dataclasses
import io

import numpy as np
from PIL import Image, ImageFilter

from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip

_KERNELS = {"area": Image.Resampling.BOX, "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
# Shares of clips that are blurred and that go through JPEG, and the ranges that are drawn from.
_BLURRED, _LARGEST_BLUR = 0.5, 1.0  # standard deviation, px of the smaller clip
_COMPRESSED, _QUALITIES = 0.3, (40, 95)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowConfig:
    """How much smaller and slower; one of each is drawn for a clip.

    Attributes:
      space: Whole numbers that height and width are divided by, 1 for none.
      time: Whole numbers, of which every n-th frame is kept; where a clip is too short, the largest that leaves two.
    """

    space: tuple[int, ...]
    time: tuple[int, ...]

    def __post_init__(self):
        for name, factors in (("space", self.space), ("time", self.time)):
            if not factors or min(factors) < 1:
                raise UserError(f"low.{name} {factors} must be whole numbers from 1 on, one or more")

    @property
    def recipe(self) -> str:
        """In words, how and with which ranges."""
        low, high = _QUALITIES
        space, time = ("/".join(map(str, factors)) for factors in (self.space, self.time))
        return (
            f"{space} smaller by {'/'.join(_KERNELS)}, {time} slower, {_BLURRED:g} blurred up to "
            f"{_LARGEST_BLUR:g} px, {_COMPRESSED:g} jpeg {low} to {high}"
        )


def degraded(clip: Clip, generator: np.random.Generator, config: LowConfig) -> tuple[Clip, dict[str, float | str]]:
    """Returns a smaller, slower, spoiled form of a clip, and what was drawn to make it, by name.

    Height and width are those of the clip over the drawn factor, rounded down; the rate is the clip's over the
    drawn one. A factor of 1 leaves the size, and the kernel has no effect.
    """
    frames, height, width = clip.pixels_THWC.shape[:3]
    space = int(generator.choice(config.space))
    time = int(generator.choice(config.time))
    time = time if frames > time else max((n for n in config.time if n < frames), default=1)
    kernel = str(generator.choice(list(_KERNELS)))
    blur = float(generator.uniform(0, _LARGEST_BLUR)) if generator.random() < _BLURRED else 0.0
    quality = int(generator.integers(*_QUALITIES, endpoint=True)) if generator.random() < _COMPRESSED else 0
    size = width // space, height // space
    made_THWC = np.stack(
        [
            _spoiled(Image.fromarray(frame_HWC), size, kernel=kernel, blur=blur * space, quality=quality)
            for frame_HWC in clip.pixels_THWC[::time]
        ]
    )
    drawn: dict[str, float | str] = {"space": space, "time": time, "kernel": kernel, "blur": blur, "jpeg": quality}
    return dataclasses.replace(clip, pixels_THWC=made_THWC, fps=clip.fps / time), drawn


def _spoiled(image: Image.Image, size: tuple[int, int], *, kernel: str, blur: float, quality: int) -> np.ndarray:
    """Returns the uint8 pixels of a frame, blurred by `blur` px of its own, scaled, then through JPEG; 0: not so."""
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    if image.size != size:
        image = image.resize(size, _KERNELS[kernel])
    if quality:
        held = io.BytesIO()
        image.save(held, "jpeg", quality=quality)
        image = Image.open(held)
    return np.asarray(image)
