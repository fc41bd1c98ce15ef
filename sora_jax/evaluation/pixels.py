"""How near a clip is to another, pixel by pixel: PSNR and SSIM.

Letters: T H W C pixels. numpy; float64 inside.
"""

import numpy as np

# SSIM as published: a Gaussian window of 11 px and 1.5 px deviation, K1 = 0.01, K2 = 0.03.
_WINDOW = 11
_DEVIATION = 1.5


def psnr(first_THWC: np.ndarray, second_THWC: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio of two uint8 clips, in dB; infinite for equal clips."""
    error = np.mean(np.square(first_THWC.astype(np.float64) - second_THWC.astype(np.float64)))
    return float(10 * np.log10(255.0**2 / error)) if error > 0 else float("inf")


def ssim(first_THWC: np.ndarray, second_THWC: np.ndarray) -> float:
    """Returns the structural similarity of two uint8 clips, mean over frames, channels and window positions.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", section III-B; only
    positions where the window lies inside the frame count. Frames smaller than the window get a window that fits.
    """
    first, second = first_THWC.astype(np.float64), second_THWC.astype(np.float64)
    window = _window(min(_WINDOW, *first.shape[1:3]))

    def blur(x: np.ndarray) -> np.ndarray:
        for axis in (1, 2):
            view = np.lib.stride_tricks.sliding_window_view(x, len(window), axis=axis)
            x = view @ window
        return x

    mean_a, mean_b = blur(first), blur(second)
    variance_a = blur(first**2) - mean_a**2
    variance_b = blur(second**2) - mean_b**2
    covariance = blur(first * second) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float(np.mean(luminance * structure))


def _window(size: int) -> np.ndarray:
    offset = np.arange(size) - (size - 1) / 2
    weights = np.exp(-0.5 * (offset / _DEVIATION) ** 2)
    return weights / weights.sum()
