"""Requests: what a line may say, and what is refused."""

import json

import pytest

from sora_jax.core.errors import UserError
from sora_jax.generate.request import DEFAULT_STRENGTH, TASKS, Request, read_requests
from sora_jax.generate.tasks import MAKERS as MADE

RED = ("a red circle",)


def test_a_line_is_a_request(tmp_path):
    lines = [
        {"prompt": "a red circle", "size": "24x40", "seed": 3, "seconds": 2},
        {"task": "connect", "video": ["a.mp4", "b.mp4"], "prompt": ["red", "blue"], "strength": 1, "output": "x.mp4"},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)))
    first, second = read_requests(path)
    assert first == Request(prompt=RED, size="24x40", seed=3, seconds="2")
    assert first.pixels() == (24, 40)
    assert first.spans() == (0, 2)
    videos = (str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"))
    assert second == Request(task="connect", prompt=("red", "blue"), video=videos, strength=1, output="x.mp4")
    assert second.facts() == {
        "task": "connect",
        "prompt": ("red", "blue"),
        "video": videos,
        "strength": 1,
        "output": "x.mp4",
        "seed": 0,
    }


def test_given_files_may_be_in_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    path = tmp_path / "requests.jsonl"
    first = '{"task": "animate", "image": "~/a.png", "last_image": "~/b.png"}'
    path.write_text(first + '\n{"task": "loop", "video": "~/a.mp4"}')
    first, second = read_requests(path)
    assert (first.image, second.video) == ("/homes/me/a.png", ("/homes/me/a.mp4",))
    assert first.files() == ["/homes/me/a.png", "/homes/me/b.png"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is not JSON"),
        ("[]", "line 2: is not an object"),
        ('{"promt": "red"}', "line 2: 'promt' is none of task, prompt, negative"),
        ('{"prompt": "red", "frames": "five"}', "line 2: frames 'five' is not a whole number or null"),
        ('{"prompt": "red", "seed": true}', "line 2: seed True is not a whole number"),
        ('{"prompt": [1]}', "line 2: prompt (1,) is not text or a list of texts"),
        ('{"prompt": "red", "keep_pixels": 1}', "line 2: keep_pixels 1 is not true or false"),
        ('{"prompt": "red", "prompt": "blue"}', "line 2: is not JSON: the key 'prompt' comes twice"),
        ('{"prompt": ' + "[" * 100_000, "line 2: is not JSON: it is nested too deeply"),
        ('{"prompt": "red", "line": 3}', "line 2: 'line' is none of task, prompt, negative"),
        ('{"prompt": "red", "frames": 1' + "0" * 400 + "}", "is not a whole number or null"),
        ('{"prompt": "red", "fps": 1' + "0" * 400 + "}", "is not a number or null"),
        (
            '{"task": "animate", "prompt": "red", "image": "a\\u0000.png"}',
            "line 2: image 'a\\x00.png' is no name of a file",
        ),
        ('{"prompt": "red", "task": "paint"}', "line 2: task 'paint' is none of text, animate"),
    ],
)
def test_a_line_that_cannot_be_is_named(tmp_path, line, said):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"prompt": "red"}\n' + line)
    with pytest.raises(UserError) as error:
        read_requests(path)
    assert said in str(error.value)


def test_every_task_has_a_way_to_be_made():
    assert tuple(MADE) == TASKS
    assert DEFAULT_STRENGTH.keys() < set(TASKS)


def test_an_empty_file_or_none_says_so(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_requests(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="are empty: write lines such as"):
        read_requests(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prompt": ()}, "0 prompts for task text, which takes a prompt"),
        ({"task": "edit", "video": ("a",), "prompt": ()}, "0 prompts for task edit, which takes a prompt"),
        ({"task": "loop", "video": ("a",), "prompt": ("b", "c")}, "2 prompts for task loop, which takes at most 1"),
        ({"task": "animate"}, "0 files to --image for task animate, which takes 1: pass --image=FILE"),
        (
            {"task": "connect", "video": ("a",)},
            "1 files to --video for task connect, which takes 2: pass --video=FILE twice",
        ),
        ({"task": "fill", "video": ("a",)}, "0 files to --mask for task fill"),
        ({"video": ("a",)}, "1 files to --video for task text, which takes none"),
        ({"frames": 5, "seconds": "1"}, "frames 5 and seconds 1: give one of them"),
        ({"frames": 0}, "frames 0 must be 1 or more"),
        ({"seconds": "soon"}, "seconds 'soon' is not a duration such as 4"),
        ({"seconds": "-4"}, "seconds '-4' is not a duration such as 4"),
        ({"seconds": "1,5"}, "seconds '1,5' is not a duration such as 4 or 1.5, with a point"),
        ({"seconds": "-1,5"}, "is not a duration such as 4 or 1.5, with a point"),
        ({"seconds": "1_5"}, "is not a duration"),
        ({"seconds": "٤"}, "is not a duration"),
        ({"seconds": ""}, "is not a duration"),
        ({"fps": 0.0}, "0 frames per second must be more than 0"),
        ({"seed": -1}, "seed -1 must be 0 or more"),
        ({"strength": 1.5}, "strength 1.5 is outside [0, 1]"),
        ({"strength": 0.5}, "strength 0.5 is for edit, loop, connect, upscale, interpolate, not for text"),
        ({"at": -0.5}, "at -0.5 is outside [0, 1]"),
        ({"guidance": -1.0}, "guidance -1 is negative"),
        ({"scale": 0.9}, "scale 0.9 must be 1 or more"),
    ],
)
def test_what_no_model_could_make_is_refused(wrong, said):
    with pytest.raises(UserError) as error:
        Request(**{"prompt": RED, **wrong})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("seconds", "spans"), [("+4", (0, 4)), ("-4", (4, 0)), ("-1.5,+2", (1.5, 2)), ("+.5,-2", (2, 0.5))]
)
def test_a_video_is_extended_both_ways(seconds, spans):
    assert Request(task="extend", prompt=RED, video=("a",), seconds=seconds).spans() == spans


def test_lines_end_where_files_of_lines_have_them_and_are_counted_as_editors_do(tmp_path):
    path = tmp_path / "requests.jsonl"
    text = '\ufeff\r\n{"prompt": "a red\u2028circle\x85 \x0c"}\r\n\n{"prompt": "blue"}\r\n'.replace("\x0c", "\\f")
    path.write_bytes(text.encode())
    first, second = read_requests(path)
    assert (first.prompt, first.line) == (("a red\u2028circle\x85 \x0c",), 2)
    assert (second.prompt, second.line) == (("blue",), 4)
    assert "line" not in second.facts()
    assert second == Request(prompt=("blue",)), "where it stands is no part of what is asked for"
    path.write_text('{"prompt": "red"}', encoding="utf-16")
    with pytest.raises(UserError, match=r"requests\.jsonl is not UTF-8 text \(byte 0\): save it as UTF-8"):
        read_requests(path)


@pytest.mark.parametrize(
    "seconds", ["1,5", "-1,5", "5,-1", "-1,5,+2", "-1,-5", "+1,+5", "-1,5,2,5", "-4,", ",", "-0,+2", "inf"]
)
def test_a_comma_parts_two_directions_and_is_no_point(seconds):
    with pytest.raises(UserError, match=r"such as 4 or 1\.5, with a point, or -4 backward, or -4,\+4 both"):
        Request(task="extend", prompt=RED, video=("a",), seconds=seconds)
