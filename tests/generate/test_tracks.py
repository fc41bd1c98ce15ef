"""Tracks of boxes: read from files, drawn through their key points, refused in a sentence."""

import json

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.generate.tracks import read_tracks


def written(tmp_path, said):
    path = tmp_path / "track.json"
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    return str(path)


def track(*keys, **more):
    return {"keys": [{"frame": frame, "box": list(box)} for frame, box in keys], **more}


def boxes(tmp_path, *tracks, frames=9, size=(32, 32)):
    return read_tracks(written(tmp_path, {"tracks": list(tracks)})).boxes(frames, size)


def moved(*places):
    """Returns a box of 8 px for each frame and place, (row, column) of its top and left."""
    return [(frame, (row, column, row + 8, column + 8)) for frame, (row, column) in places]


def test_lines_go_straight_and_boxes_stay_before_and_after(tmp_path):
    (boxes_T4,) = boxes(tmp_path, track(*moved((2, (0, 4)), (6, (8, 20)))))
    assert boxes_T4[:, 0].tolist() == [0, 0, 0, 2, 4, 6, 8, 8, 8]
    assert boxes_T4[:, 1].tolist() == [4, 4, 4, 8, 12, 16, 20, 20, 20]
    np.testing.assert_array_equal(boxes_T4[:, 2:] - boxes_T4[:, :2], np.full((9, 2), 8))


def test_curves_meet_their_key_points_and_follow_a_parabola_exactly(tmp_path):
    frames = np.arange(9)
    places = [(int(f), (f * f / 4, 2 * f)) for f in (0, 2, 5, 8)]
    (boxes_T4,) = boxes(tmp_path, track(*moved(*places), between="smooth"), size=(40, 40))
    np.testing.assert_allclose(boxes_T4[:, 0], frames**2 / 4, atol=1e-9)
    np.testing.assert_allclose(boxes_T4[:, 1], 2 * frames, atol=1e-9)
    round_ = [(f, (12 - 8 * np.cos(f * np.pi / 8), 12 + 8 * np.sin(f * np.pi / 8))) for f in range(0, 17, 2)]
    (boxes_T4,) = boxes(tmp_path, track(*moved(*round_), between="smooth"), frames=17)
    middle_T2 = boxes_T4[:, :2] - 12
    np.testing.assert_allclose(np.hypot(*middle_T2.T), 8, atol=0.3)
    assert boxes(tmp_path, track(*moved((0, (0, 0)), (8, (8, 8))), between="smooth"))[0, 4, 0] == 4, "two: a line"


def test_boxes_are_of_the_size_that_the_file_says(tmp_path):
    said = {"tracks": [track((0, (0, 0, 240, 320)))], "size": [480, 640]}
    (boxes_T4,) = read_tracks(written(tmp_path, said)).boxes(1, (24, 40))
    assert boxes_T4.tolist() == [[0, 0, 12, 20]]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{", "cannot be read as JSON"),
        ([], "must be an object with 1 to 3 tracks; write such as"),
        ({"tracks": [track((0, (0, 0, 1, 1)))] * 4}, "with 1 to 3 tracks"),
        ({"tracks": [{}]}, "track 1 has no keys"),
        ({"tracks": [track((0, (0, 0, 1, 1)), between="wild")]}, "between 'wild', which is none of linear, smooth"),
        ({"tracks": [track((0, (0, 0, 1)))]}, r"key 1 of track 1 has the box \[0, 0, 1\], which is not \[top"),
        ({"tracks": [track((0, (0, 0, 10**400, 1)))]}, r"which is not \[top, left, bottom, right\]"),
        ({"tracks": [track((10**400, (0, 0, 1, 1)))]}, "key 1 of track 1 has no frame"),
        ({"tracks": [track((0, (4, 0, 4, 1)))]}, r"which is not \[top, left, bottom, right\]"),
        ({"tracks": [track((0.5, (0, 0, 1, 1)))]}, "key 1 of track 1 has no frame"),
        ({"tracks": [track((True, (0, 0, 1, 1)))]}, "key 1 of track 1 has no frame"),
        ({"tracks": [track((-1, (0, 0, 1, 1)))]}, r"frames of track 1 are \[-1\] and must rise from 0"),
        ({"tracks": [track((3, (0, 0, 1, 1)), (3, (0, 0, 1, 1)))]}, r"\[3, 3\] and must rise"),
        (
            {"tracks": [track((0, (0, 0, 1, 1)))], "sizes": [1, 1]},
            "the file has 'sizes', which is none of tracks",
        ),
        ({"tracks": [track((0, (0, 0, 1, 1)))], "size": [0, 4]}, r"size \[0, 4\] is not \[height, width\]"),
    ],
)
def test_what_is_no_track_is_refused(tmp_path, said, words):
    with pytest.raises(UserError, match=words):
        read_tracks(written(tmp_path, said))


def test_a_file_that_is_not_there_is_said():
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        read_tracks("nowhere.json")


def test_a_box_outside_of_the_frame_is_refused_also_between_key_points(tmp_path):
    with pytest.raises(UserError, match=r"box of track 1 is \[28, 0, 36, 8\] at frame 0, outside of 32x32 px"):
        boxes(tmp_path, track(*moved((0, (28, 0)))))
    high = moved((0, (0, 0)), (2, (20, 8)), (6, (20, 20)), (8, (0, 24)))
    assert boxes(tmp_path, track(*high)).max() <= 32
    with pytest.raises(UserError, match=r"outside of 30x32 px: move its key points"):
        boxes(tmp_path, track(*high, between="smooth"), size=(30, 32))


def test_a_track_longer_than_the_video_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"goes on to frame 12 and the video has 9 frames.* pass --frames=13 or more"):
        boxes(tmp_path, track(*moved((0, (0, 0)), (12, (4, 4)))))
    assert boxes(tmp_path, track(*moved((0, (3, 4))))).shape == (1, 9, 4)
