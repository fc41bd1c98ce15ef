"""High dynamic range and wide gamuts on a screen of BT.709: anchors of the standards, ramps, colours, files."""

import av
import numpy as np
import pytest

from sora_jax.data.media.tone import HLG, PQ, TONE_FORMAT, ToneMap, is_mapped, to_bt709
from sora_jax.data.media.video_io import read_clip

BT2020 = 9
# From BT.709 to BT.2020, as ITU-R BT.2087 prints it.
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
# Skin, sky, leaves, brick, grey, in the signal of BT.709: none so bright that it counts as a highlight.
COLOURS = np.array([(178, 132, 108), (110, 150, 180), (60, 110, 50), (150, 60, 45), (128, 128, 128)])


def pq(light: np.ndarray) -> np.ndarray:
    """Returns the PQ signal of cd/m2, as SMPTE ST 2084 prints it."""
    power = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light: np.ndarray) -> np.ndarray:
    """Returns the HLG signal of cd/m2 (..., 3) in BT.2020 on a screen of 1000, as ITU-R BT.2100 prints it."""
    luminance = light @ np.array([0.2627, 0.6780, 0.0593]) / 1000
    scene = light / 1000 * luminance[..., None] ** (1 / 1.2 - 1)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


SIGNALS = {PQ: pq, HLG: hlg}


def in_wide(colours: np.ndarray, transfer: int) -> np.ndarray:
    """Returns the signal of colours of BT.709 in BT.2020, white at 203 cd/m2."""
    light = (colours / 255) ** 2.4 @ TO_2020.T
    return SIGNALS[transfer](203 * light) if transfer in SIGNALS else light ** (1 / 2.4)


def shown(signal: np.ndarray, transfer: int, primaries: int = BT2020) -> np.ndarray:
    return 255 * to_bt709(signal, transfer=transfer, primaries=primaries)


@pytest.mark.parametrize("transfer", [PQ, HLG, 1, 14])
def test_colours_that_a_screen_of_bt_709_has_come_back_as_they_are(transfer):
    np.testing.assert_allclose(shown(in_wide(COLOURS, transfer), transfer), COLOURS, atol=0.6)


@pytest.mark.parametrize(
    ("transfer", "signal", "light"), [(HLG, 0.38, 26.2), (HLG, 0.75, 203.0), (PQ, 0.3797, 26.0), (PQ, 0.5807, 203.0)]
)
def test_the_anchors_of_the_standards(transfer, signal, light):
    level = shown(np.full(3, signal), transfer)[0]
    plain = 255 * (light / 203) ** (1 / 2.4)
    # White leaves room for highlights; a grey card stays.
    assert level == pytest.approx(231 if light == 203.0 else plain, abs=1)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_a_ramp_is_smooth_neutral_and_fills_the_range(transfer):
    top = 1.0 if transfer == HLG else float(pq(np.array(1000.0)))
    ramp = shown(np.linspace(0, top, 1001)[:, None].repeat(3, axis=1), transfer)
    steps = np.diff(ramp[:, 1])
    assert np.ptp(ramp, axis=1).max() < 0.05
    assert ramp[0].max() == 0
    assert ramp[-1].min() == pytest.approx(255, abs=0.1)
    assert steps.min() >= 0
    assert steps.max() < 1.5
    assert shown(np.ones(3), transfer).tolist() == pytest.approx([255] * 3, abs=0.1)


def test_highlights_keep_their_hue():
    light = np.array([1.0, 0.5, 0.25])
    for most in (100, 300, 900):
        level = shown(pq(TO_2020 @ light * most), PQ) / 255
        np.testing.assert_allclose((level / level[0]) ** 2.4, light, atol=0.01)


@pytest.mark.parametrize(("transfer", "primaries"), [(PQ, 9), (PQ, 12), (PQ, 2), (HLG, 9), (1, 9), (2, 12), (14, 11)])
def test_tables_are_within_a_level_of_the_formulas(transfer, primaries):
    signal = np.random.default_rng(0).integers(0, 2**16, (64, 80, 3), np.uint16)
    signal[:8] = np.linspace(0, 2**16 - 1, 80).astype(np.uint16)[:, None]
    seen = ToneMap(transfer=transfer, primaries=primaries)(signal)
    assert (seen.dtype, seen.shape) == (np.uint8, signal.shape)
    assert np.abs(seen - shown(signal / 65535, transfer, primaries)).max() < 1


def test_what_is_of_bt_709_is_left_alone():
    assert not any(is_mapped(transfer, primaries) for transfer in (1, 2, 6, 13) for primaries in (1, 2, 5, 6, 7))
    assert is_mapped(HLG, 1)
    assert is_mapped(1, 9)


@pytest.mark.parametrize(
    ("transfer", "primaries", "matrix"), [(HLG, 9, 9), (PQ, 9, 9), (PQ, 2, 2), (14, 9, 9), (HLG, 9, 2)]
)
def test_files_are_shown_in_their_colours(tmp_path, transfer, primaries, matrix):
    signal_HWC = np.rint(65535 * in_wide(COLOURS, transfer)).astype(np.uint16)[None]
    frame = av.VideoFrame.from_ndarray(signal_HWC.repeat(32, axis=0).repeat(16, axis=1), format=TONE_FORMAT)
    with av.open(tmp_path / "a.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 80, "yuv444p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries = transfer, primaries
        context.colorspace, context.color_range = matrix, 1
        for _ in range(2):
            picture = frame.reformat(format="yuv444p10le", dst_colorspace="BT2020")
            picture.colorspace = matrix  # or it would be converted once more
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    with av.open(tmp_path / "a.mkv") as container:
        stored = next(container.decode(video=0))
        assert (stored.color_trc, stored.color_primaries, stored.colorspace) == (transfer, primaries, matrix)
    pixels_THWC, _ = read_clip(tmp_path / "a.mkv")
    assert pixels_THWC.shape == (2, 32, 80, 3)
    np.testing.assert_allclose(pixels_THWC[:, 16, 8::16].astype(int), [COLOURS, COLOURS], atol=3)
    small_THWC, _ = read_clip(tmp_path / "a.mkv", short_side=16)
    np.testing.assert_allclose(small_THWC[0, 8, 4::8].astype(int), COLOURS, atol=3)
