"""Given files: every part of a result at its own speed, and a mask that says where."""

import numpy as np
import pytest

from sora_jax.data.video_output import write_clip
from sora_jax.generate.given import Given, read_given
from sora_jax.generate.request import Request


def counted(frames: int) -> np.ndarray:
    """Frames that are told apart by their brightness."""
    return np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 4, 6, 3))


def given(*rates: float, seconds: float = 1.0, mask: bool = False) -> Given:
    clips = tuple(counted(1 + round(seconds * rate)) for rate in rates)
    return Given(image_THWC=None, clips=clips, rates=rates, mask_THWC=clips[0] if mask else None)


def shown(clip: np.ndarray) -> list[int]:
    return clip[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("rate", "fps", "numbers"),
    [
        (16.0, 8.0, list(range(0, 17, 2))),
        (8.0, 16.0, [n // 2 for n in range(17)]),
        (240.0, 8.0, list(range(0, 241, 30))),
        (8.0, 12.0, [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8]),
        (29.97, 30.0, list(range(31))),
        (8.0, 8.0, list(range(9))),
    ],
)
def test_a_video_keeps_its_speed_at_every_rate(rate, fps, numbers):
    at = given(rate).at(fps, ["a.mp4"])
    assert shown(at.clips[0]) == numbers
    same = numbers == list(range(1 + round(rate)))
    assert bool(at.remarks) != same
    assert same or f"a.mp4 has {rate:.4g} frames per second and the result {fps:.4g}" in at.remarks[0]


def test_each_of_two_videos_and_a_mask_with_its_own():
    at = given(8.0, 240.0, mask=True).at(8.0, ["a.mp4", "b.mp4"])
    assert [len(clip) for clip in at.clips] == [9, 9]
    assert shown(at.clips[1]) == list(range(0, 241, 30))
    assert at.mask_THWC is not None
    assert shown(at.mask_THWC) == list(range(9))
    assert [remark.split()[0] for remark in at.remarks] == ["b.mp4"]
    at = given(16.0, mask=True).at(8.0, ["a.mp4"])
    assert at.mask_THWC is not None
    assert shown(at.mask_THWC) == shown(at.clips[0]) == list(range(0, 17, 2))


def test_one_frame_has_no_speed():
    assert shown(given(1.0, seconds=0).at(8.0, ["a.png"]).clips[0]) == [0]


def test_files_come_with_their_rates(tmp_path):
    for name, fps in (("a.gif", 10.0), ("b.gif", 20.0)):
        write_clip(tmp_path / name, 20 * counted(5), fps=fps)
    found = read_given(Request(task="connect", video=(str(tmp_path / "a.gif"), str(tmp_path / "b.gif"))))
    assert found.rates == pytest.approx((10.0, 20.0))
    assert [len(clip) for clip in found.at(10.0, ["a", "b"]).clips] == [5, 3]
