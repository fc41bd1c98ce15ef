"""Which clips show the same: an exact digest of the pixels, and a perceptual hash that survives re-encoding.

T frames, H rows, W columns, C = 3 colours, N clips, Y words of 64 bits of a hash.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Pictures of a clip that are hashed, 64 bits each.
_PICTURES = 4
# Side of the picture that is transformed, and of the low frequencies that are kept of it.
_SIDE, _KEPT = 32, 8
# Luma levels over which a coefficient is clearly positive: noise and palettes stay under it.
_CLEAR = 4.0
# Difference of the mean of a colour, of 255, over which clips are not the same. Hashes are of luma without its mean.
_COLOUR = 24.0

_frequency = np.arange(_KEPT)[:, None]
_COSINES = np.cos(np.pi / _SIDE * (np.arange(_SIDE) + 0.5) * _frequency) * np.sqrt(2 / _SIDE)
_COSINES[0] /= np.sqrt(2)


def pixel_digest(pixels_THWC: np.ndarray) -> str:
    """Returns a sha256 in hex of shape and pixels."""
    digest = hashlib.sha256(repr(pixels_THWC.shape).encode())
    digest.update(np.ascontiguousarray(pixels_THWC).data)
    return digest.hexdigest()


def perceptual_hash(pixels_THWC: np.ndarray) -> str:
    """Returns 256 bits in hex: 64 of each of four frames, at 1/8, 3/8, 5/8 and 7/8 of the duration.

    Of a frame: luma at 32 x 32, its 8 x 8 lowest cosine frequencies, for each whether its coefficient is clearly
    positive (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010, takes those over their
    median, which noise decides where a picture is smooth). The mean does not count, so brightness does not either. A
    frame without content hashes to 0.
    """
    numbers = (np.arange(_PICTURES) + 0.5) / _PICTURES * len(pixels_THWC)
    return b"".join(_hash_frame(pixels_THWC[int(number)]) for number in numbers).hex()


def _hash_frame(pixels_HWC: np.ndarray) -> bytes:
    image = Image.fromarray(pixels_HWC).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    coefficients = (_COSINES @ np.asarray(image, np.float64) @ _COSINES.T).ravel()
    coefficients[0] = 0  # the mean
    return np.packbits(coefficients > _CLEAR).tobytes()


def find_duplicates(
    files: Sequence[int],
    digests: Sequence[str],
    hashes: Sequence[str],
    colours: Sequence[tuple[float, float, float]],
    *,
    bits: int,
) -> dict[int, tuple[int, int]]:
    """Returns for each clip that repeats an earlier, kept one: (which, the differing bits; 0 for equal pixels).

    Equal pixels are found everywhere; likenesses within `bits` only between files (`files` are their numbers), since
    the windows of one shot are alike and still differ in what happens. Compares each clip with all kept before: time
    grows with the square of their number, about 20 s for 20 000.
    """
    count = len(files)
    seen: dict[str, int] = {}
    found: dict[int, tuple[int, int]] = {}
    hash_NY = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64).reshape(count, _PICTURES)
    colour_NC, file_N = np.array(colours, np.float32).reshape(count, 3), np.array(files)
    kept_N = np.zeros(count, bool)
    for index in range(count):
        if digests[index] in seen:
            found[index] = (seen[digests[index]], 0)
            continue
        near = np.bitwise_count(hash_NY[:index] ^ hash_NY[index]).sum(axis=1, dtype=np.int32)
        same = kept_N[:index] & (near <= bits) & (file_N[:index] != file_N[index])
        same &= (np.abs(colour_NC[:index] - colour_NC[index]) <= _COLOUR).all(axis=1)
        if same.any():
            which = int(np.flatnonzero(same)[np.argmin(near[same])])
            found[index] = (which, int(near[which]))
            continue
        seen[digests[index]] = index
        kept_N[index] = True
    return found
