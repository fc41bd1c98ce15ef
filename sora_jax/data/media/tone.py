"""Colours of high dynamic range and of wide gamuts, as a player shows them on a screen of BT.709.

Sources, by the numbers of their formulas' documents:

- signal to light: ITU-R BT.2100-2, table 4 (PQ) and table 5 (HLG, with its system gamma of 1.2 for 1000 cd/m2);
- which light is white: 203 cd/m2, ITU-R BT.2408-7, section 2.2, in HLG 75 % of the signal, in PQ 58 %;
- highlights: the EETF of ITU-R BT.2390-11, section 5.4.1, from 1000 cd/m2 to that white, of the largest of red, green
  and blue, so that hues stay and nothing clips; up to about 92 cd/m2 (71 % of the signal) light stays as it is;
- gamut: the matrix from the primaries of H.273 to those of BT.709, what is outside clipped (ITU-R BT.2407-0, annex 2);
- light to signal: the inverse of ITU-R BT.1886, a power of 1 / 2.4.

PQ over 1000 cd/m2 is as 1000. Shapes: `H` rows of pixels, `W` columns of pixels, `C` = 3 colours (red, green, blue).
"""

import numpy as np

# Of H.273: transfer characteristics, and chromaticities (x, y) of red, green and blue by colour primaries, white D65.
PQ, HLG = 16, 18
BT2020 = 9
_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
WIDE = {BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), 11: _P3, 12: _P3}
_BT709 = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_D65 = (0.3127, 0.3290)

_WHITE, _PEAK = 203.0, 1000.0  # cd/m2
_MOST = 2 * _PEAK / _WHITE  # light in BT.709 of the most colourful peak, at most
_GAMMA = 2.4  # of a screen
_STEPS = 4096  # of tables over the square root of light
_BLOCK = 2**16  # pixels at once: they stay in the cache of a core
TONE_FORMAT = "gbrp16le"  # what frames are converted to before they are mapped: to rgb48le FFmpeg loses green


def is_mapped(transfer: int, primaries: int) -> bool:
    """Returns whether frames with these tags, numbers of H.273, need more than a matrix to be shown in BT.709."""
    return transfer in (PQ, HLG) or primaries in WIDE


def to_bt709(signal: np.ndarray, *, transfer: int, primaries: int) -> np.ndarray:
    """Returns the signal for a screen of BT.709, float64 in [0, 1], of a non-linear one, (..., 3) in [0, 1].

    `transfer` and `primaries` are numbers of H.273. A high dynamic range whose primaries are not `WIDE` has those of
    BT.2020; any other transfer than PQ and HLG is that of `_GAMMA`.
    """
    high = transfer in (PQ, HLG)
    primaries = BT2020 if high and primaries not in WIDE else primaries
    to_xyz = _to_xyz(WIDE.get(primaries, _BT709))
    light = _light(signal, transfer)
    if transfer == HLG:
        light *= _system_gamma(light @ to_xyz[1])[..., None]
    light = np.maximum(light @ (np.linalg.inv(_to_xyz(_BT709)) @ to_xyz).T, 0)
    if high:
        light *= _highlights(light.max(axis=-1, keepdims=True))
    return np.minimum(light, 1) ** (1 / _GAMMA)


class ToneMap:
    """`to_bt709` for frames: by tables, within a level of the formulas, and some ten times as fast."""

    def __init__(self, *, transfer: int, primaries: int):
        high = transfer in (PQ, HLG)
        to_xyz = _to_xyz(WIDE[BT2020 if high and primaries not in WIDE else primaries])
        signal, root = np.arange(2**16) / (2**16 - 1), (np.arange(_STEPS) / (_STEPS - 1)) ** 2
        self._light = _light(signal, transfer).astype(np.float32)
        self._matrix = (np.linalg.inv(_to_xyz(_BT709)) @ to_xyz).astype(np.float32)
        # Over the square root of light: the factors for a luminance and a largest colour, and the levels.
        self._luminance = to_xyz[1].astype(np.float32) if transfer == HLG else None
        self._system = _system_gamma(root).astype(np.float32)
        self._highlights = _highlights(root * _MOST).astype(np.float32) if high else None
        self._levels = np.rint(255 * root ** (1 / _GAMMA)).astype(np.uint8)

    def __call__(self, signal_HWC: np.ndarray) -> np.ndarray:
        """Returns uint8 (H, W, 3) of a signal in uint16, 65535 for 1."""
        flat, seen = signal_HWC.reshape(-1, 3), np.empty((signal_HWC.size // 3, 3), np.uint8)
        for start in range(0, len(flat), _BLOCK):
            block = slice(start, start + _BLOCK)
            colours = [self._light.take(flat[block, colour]) for colour in range(3)]
            if self._luminance is not None:
                system = self._system.take(_steps(_dot(self._luminance, colours), 1.0))
                colours = [light * system for light in colours]
            colours = [np.maximum(_dot(row, colours), 0) for row in self._matrix]
            if self._highlights is not None:
                largest = np.maximum(np.maximum(colours[0], colours[1]), colours[2])
                factor = self._highlights.take(_steps(largest, _MOST))
                colours = [light * factor for light in colours]
            for colour, light in enumerate(colours):
                seen[block, colour] = self._levels.take(_steps(light, 1.0))
        return seen.reshape(signal_HWC.shape)


def _dot(weights: np.ndarray, colours: list[np.ndarray]) -> np.ndarray:
    return weights[0] * colours[0] + weights[1] * colours[1] + weights[2] * colours[2]


def _steps(light: np.ndarray, most: float) -> np.ndarray:
    """Returns where light from 0 to `most` lies in a table over its square root; more is `most`."""
    scale = np.float32((_STEPS - 1) / most**0.5)
    steps = np.sqrt(light) * scale + np.float32(0.5)
    return np.minimum(steps, np.float32(_STEPS - 1)).astype(np.intp)


def _light(signal: np.ndarray, transfer: int) -> np.ndarray:
    """Returns the light of a signal in [0, 1]: 1 is white, or in HLG the peak of the scene."""
    if transfer == PQ:
        return np.minimum(_pq_light(signal), _PEAK) / _WHITE
    if transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return signal**_GAMMA


def _system_gamma(luminance: np.ndarray) -> np.ndarray:
    """Returns the factor from light of an HLG scene of that luminance, its peak being 1, to that of a screen."""
    return _PEAK / _WHITE * luminance**0.2


def _pq_light(signal: np.ndarray) -> np.ndarray:
    """Returns cd/m2 of a PQ signal in [0, 1]."""
    power = signal ** (32 / 2523)
    return 10000 * (np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)) ** (8192 / 1305)


def _pq_signal(light: np.ndarray | float) -> np.ndarray:
    """Returns the PQ signal in [0, 1] of cd/m2."""
    power = (np.asarray(light) / 10000) ** (1305 / 8192)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def _highlights(light: np.ndarray) -> np.ndarray:
    """Returns by how much light of that largest colour, white being 1, is multiplied: the EETF over its argument."""
    peak = _pq_signal(_PEAK)
    most, signal = _pq_signal(_WHITE) / peak, np.minimum(_pq_signal(light * _WHITE) / peak, 1)
    knee = 1.5 * most - 0.5
    t = np.maximum((signal - knee) / (1 - knee), 0)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return np.where(signal < knee, 1, _pq_light(spline * peak) / _WHITE / np.maximum(light, 1e-9))


def _to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Returns (3, 3) from light of these primaries, white D65, to CIE XYZ."""
    x_3, y_3 = np.array(primaries).T
    columns = np.stack([x_3 / y_3, np.ones(3), (1 - x_3 - y_3) / y_3])
    white = np.array([_D65[0] / _D65[1], 1, (1 - _D65[0] - _D65[1]) / _D65[1]])
    return columns * np.linalg.solve(columns, white)
