"""Per-channel scale of latents: what makes them zero mean and unit variance, over all channels, for the transformer.

Letters: T H W C latent. numpy and jax arrays alike; statistics are numpy float64.
"""

import dataclasses

import numpy as np

# Deviations of a channel over that of its noise, above which more counts for nothing: a bottleneck without a price
# would let its noise vanish in some channels, which are then worth what their deviations say.
_CLEAREST = 100.0


def normalise(latent, mean_C, scale_C):
    """Returns (latent - mean_C) / scale_C in the latent's dtype; any leading shape, channels last."""
    return (latent - mean_C.astype(latent.dtype)) / scale_C.astype(latent.dtype)


def denormalise(latent, mean_C, scale_C):
    """Returns latent * scale_C + mean_C in the latent's dtype: the inverse of `normalise`."""
    return latent * scale_C.astype(latent.dtype) + mean_C.astype(latent.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentStatistics:
    """Per-channel moments of raw latents and of the bottleneck's noise, summed over clips; each position counts once.

    A sum: `of` one clip, `merge` with others in any order or on any machine, then read `mean_C`, `scale_C`.
    """

    sum_C: np.ndarray  # float64
    squares_C: np.ndarray  # float64
    noise_C: np.ndarray  # float64, of variances
    count: int  # positions, that is values per channel

    @classmethod
    def of(cls, latent_THWC: np.ndarray, noise_THWC: np.ndarray | None = None) -> "LatentStatistics":
        """Returns the statistics of one latent, any leading shape, channels last; None: its noise has no variance."""
        values_MC = np.asarray(latent_THWC, np.float64).reshape(-1, latent_THWC.shape[-1])
        noise_THWC = np.zeros_like(latent_THWC) if noise_THWC is None else noise_THWC
        return cls(
            sum_C=values_MC.sum(0),
            squares_C=np.square(values_MC).sum(0),
            noise_C=np.asarray(noise_THWC, np.float64).reshape(values_MC.shape).sum(0),
            count=len(values_MC),
        )

    def merge(self, other: "LatentStatistics") -> "LatentStatistics":
        """Returns the statistics over both samples."""
        return LatentStatistics(
            sum_C=self.sum_C + other.sum_C,
            squares_C=self.squares_C + other.squares_C,
            noise_C=self.noise_C + other.noise_C,
            count=self.count + other.count,
        )

    @property
    def mean_C(self) -> np.ndarray:
        """Returns the mean of each channel, float64."""
        return self.sum_C / self.count

    @property
    def variance_C(self) -> np.ndarray:
        """Returns the variance of each channel, float64; 0 for a channel that never varies."""
        variance_C = self.squares_C / self.count - self.mean_C**2
        # Cancellation leaves rounding noise about as large as the squared mean times float64's precision.
        constant_C = variance_C <= 1e-12 * np.maximum(self.squares_C / self.count, 1e-30)
        return np.where(constant_C, 0.0, np.maximum(variance_C, 0.0))

    @property
    def scale_C(self) -> np.ndarray:
        """Returns what each channel is divided by, float64.

        The bottleneck's noise then is equally large in all channels, and the mean of their variances is 1. What the
        decoder hardly hears has much noise (a Gaussian's posterior is as wide as it can afford), so it becomes small,
        and the diffusion model spends itself on what shows. The usual unit variance of each channel (arXiv 2112.10752,
        appendix G, takes one number for all) makes a channel that shows nothing as loud as the others. 1 where nothing
        varies.
        """
        variance_C = self.variance_C
        noise_C = np.maximum(self.noise_C / self.count, variance_C / _CLEAREST**2)
        clarity = float(np.mean(np.divide(variance_C, noise_C, out=np.zeros_like(noise_C), where=noise_C > 0)))
        return np.sqrt(np.where(noise_C > 0, noise_C * clarity, 1.0)) if clarity > 0 else np.ones_like(variance_C)
