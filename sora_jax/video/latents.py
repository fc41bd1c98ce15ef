"""Per-channel scale of latents: what makes them zero mean and unit variance for the diffusion model.

Letters: T H W C latent. numpy and jax arrays alike; statistics are numpy float64.
"""

import dataclasses

import numpy as np


def normalise(latent, mean_C, scale_C):
    """Returns (latent - mean_C) / scale_C in the latent's dtype; any leading shape, channels last."""
    return (latent - mean_C.astype(latent.dtype)) / scale_C.astype(latent.dtype)


def denormalise(latent, mean_C, scale_C):
    """Returns latent * scale_C + mean_C in the latent's dtype: the inverse of `normalise`."""
    return latent * scale_C.astype(latent.dtype) + mean_C.astype(latent.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentStatistics:
    """Per-channel moments of raw latents, summed over clips so that each position counts once.

    A sum: `of` one clip, `merge` with others in any order or on any machine, then read `mean_C`, `scale_C`.
    """

    sum_C: np.ndarray  # float64
    squares_C: np.ndarray  # float64
    count: int  # positions, that is values per channel

    @classmethod
    def of(cls, latent_THWC: np.ndarray) -> "LatentStatistics":
        """Returns the statistics of one latent; any leading shape, channels last."""
        values_MC = np.asarray(latent_THWC, np.float64).reshape(-1, latent_THWC.shape[-1])
        return cls(sum_C=values_MC.sum(0), squares_C=np.square(values_MC).sum(0), count=len(values_MC))

    def merge(self, other: "LatentStatistics") -> "LatentStatistics":
        """Returns the statistics over both samples."""
        return LatentStatistics(
            sum_C=self.sum_C + other.sum_C,
            squares_C=self.squares_C + other.squares_C,
            count=self.count + other.count,
        )

    @property
    def mean_C(self) -> np.ndarray:
        """Returns the mean of each channel, float64."""
        return self.sum_C / self.count

    @property
    def scale_C(self) -> np.ndarray:
        """Returns the standard deviation of each channel, float64; 1 for a channel that never varies."""
        variance_C = self.squares_C / self.count - self.mean_C**2
        # Cancellation leaves rounding noise about as large as the squared mean times float64's precision.
        constant_C = variance_C <= 1e-12 * np.maximum(self.squares_C / self.count, 1e-30)
        return np.where(constant_C, 1.0, np.sqrt(np.maximum(variance_C, 0.0)))
