"""Which file a request is written to, and which requests of a file of them are done."""

import contextlib
import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import first_file
from sora_jax.generate.job import Job, Outcome
from sora_jax.generate.outputs import Book, OutputFiles, Places, facts_of, output_paths
from sora_jax.generate.request import Request, read_requests
from sora_jax.generate.write import file_stem, is_safe_name

FACTS = {"stage": "videos", "step": 6}


def job(request):
    return Job(request=request, prompts=request.prompt, negative="", size=(16, 16), fps=8.0, frames=2)


def made(requests, paths, *, shade=0):
    """Returns the files of requests; what they hold follows from the request and the shade."""
    with contextlib.ExitStack() as stack:
        files = OutputFiles(stack, requests, paths, codec=None, facts=FACTS)
        writes = [files.open(number, job(request)) for number, request in enumerate(requests)]
        for write in writes:
            write(np.full((2, 16, 16, 3), shade, np.uint8))
        return [files.close(number) for number in range(len(requests))]


def test_a_name_that_nobody_chose_replaces_no_other_video(tmp_path):
    plain, guided = Request(prompt=("a",)), Request(prompt=("a",), guidance=2.0)
    path = tmp_path / "a_seed0.mp4"
    assert made([plain], [path]) == [path]
    first = path.read_bytes()
    assert made([guided], [path]) == [tmp_path / "a_seed0_2.mp4"]
    assert made([plain], [path]) == [path], "the same video has its name already"
    assert made([plain], [path], shade=200) == [tmp_path / "a_seed0_3.mp4"], "as of weights that were trained since"
    assert path.read_bytes() == first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a_seed0.mp4", "a_seed0_2.mp4", "a_seed0_3.mp4"]


@pytest.mark.parametrize("odd", ["\ud83d", "\0"])
def test_the_title_is_of_what_can_be_seen_of_a_prompt(tmp_path, odd):
    request = Request(prompt=(f"A{odd} circle",), expansion=("a circle",))
    (path,) = made([request], [tmp_path / "a.mp4"])
    with av.open(path) as file:
        assert file.metadata["title"] == "A circle"


def test_a_file_tells_no_folder_of_what_was_given():
    folder = "/home/me/"
    controls = Request(
        task="animate",
        prompt=("a",),
        image=f"{folder}image",
        boxes=f"{folder}boxes",
        reference=f"{folder}reference",
        control=("grey",),
        control_video=(f"{folder}grey.mp4",),
    )
    facts = facts_of(job(controls))
    assert folder not in json.dumps(facts)
    assert [facts[name] for name in ("image", "boxes", "reference")] == ["image", "boxes", "reference"]
    assert facts["control_video"] == ["grey.mp4"]
    filled = Request(task="fill", prompt=("a",), video=(f"{folder}a.mp4",), mask=f"{folder}mask.png")
    facts = facts_of(job(filled))
    assert (facts["video"], facts["mask"]) == (["a.mp4"], "mask.png")


def test_a_name_that_was_chosen_is_replaced(tmp_path):
    path = tmp_path / "a.mp4"
    chosen = Request(prompt=("a",), output=str(path))
    for shade in (0, 200):
        assert made([chosen], [path], shade=shade) == [path]
    assert abs(read_clip(path)[0].mean() - 200) < 5
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_is_no_file_that_is_given_nor_another_output(tmp_path):
    given = tmp_path / "a.gif"
    given.write_text("precious")
    os.symlink(given, tmp_path / "link.gif")
    for name in ("a.gif", "./a.gif", "link.gif"):
        request = Request(task="loop", video=(str(given),), output=name)
        with pytest.raises(UserError, match=r"is the file .*a\.gif that is given: choose another name"):
            Places().add(request, tmp_path / name)
    first, second, places = Request(prompt=("a",), output="x"), Request(prompt=("a",), output="x"), Places()
    places.add(first, tmp_path / "b" / ".." / "a.mp4")
    places.add(second, tmp_path / "b.mp4")
    with pytest.raises(UserError, match=r"two --output are .*a\.mp4: give each request a file of its own"):
        places.add(second, tmp_path / "a.mp4")


def test_no_frame_of_a_numbered_output_is_a_given_file(tmp_path):
    request = Request(task="animate", image=str(tmp_path / "f_0003.png"))
    with pytest.raises(UserError, match=r"f_%04d\.png would have a frame in the file .*f_0003\.png that is given"):
        Places().add(request, tmp_path / "b" / ".." / "f_%04d.png")
    Places().add(request, tmp_path / "f_%05d.png")
    Places().add(request, tmp_path / "b" / "f_%04d.png")


@pytest.mark.parametrize(("first", "second"), [("x_3.png", "x_%d.png"), ("x_%d.png", "x_3.png"), ("x_%d.png",) * 2])
def test_no_frame_of_a_numbered_output_is_another_output(tmp_path, first, second):
    places = Places()
    places.add(Request(prompt=("a",)), tmp_path / first)
    places.add(Request(prompt=("a",)), tmp_path / "y_%d.png")
    with pytest.raises(UserError, match=r"two --output are .*x_.*\.png: give each request a file of its own"):
        places.add(Request(prompt=("b",)), tmp_path / second)


def test_a_size_that_a_codec_does_not_take_is_told_before_anything_is_made(tmp_path):
    asked, line = Request(prompt=("a",)), Request(prompt=("a",), line=3)
    with pytest.raises(UserError, match=r"a.jsonl, line 3: the AV1 encoder takes sides of 64 px or more, not 64x32"):
        output_paths(tmp_path, [line], [Outcome(False, (64, 32))], source=Path("a.jsonl"), codec="av1")
    (path,) = output_paths(tmp_path, [asked], [Outcome(False, (64, 64))], source=None, codec="av1")
    assert path == tmp_path / "a_seed0.mp4"
    assert output_paths(tmp_path, [asked], [Outcome(False, (64, 32))], source=None, codec=None) == [path]


def write_requests(path, *lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, lines)))
    return read_requests(path)


def test_what_is_done_is_found_again_whatever_its_number(tmp_path):
    path = tmp_path / "all.jsonl"
    requests = write_requests(path, {"prompt": "a"}, {"prompt": "a"}, {"prompt": "b", "output": "b.mp4"})
    book = tmp_path / "out" / "done.jsonl"
    assert [Book(book, path, FACTS).find(request) for request in requests] == [None] * 3
    for name, request in zip(("a.mp4", "a_5.mp4", "b.mp4"), requests, strict=True):
        Book(book, path, FACTS).add(request, book.with_name(name))
        book.with_name(name).write_text("")
    with open(book, "a") as file:
        file.write('{"output": "torn')
    again = Book(book, path, FACTS)
    assert [again.find(request) for request in requests] == [book.with_name(n) for n in ("a.mp4", "a_5.mp4", "b.mp4")]
    assert again.find(requests[0]) is None, "a third of the kind was not done"
    book.with_name("b.mp4").unlink()
    assert Book(book, path, FACTS).find(requests[2]) is None
    assert Book(book, path, {**FACTS, "step": 9}).find(requests[0]) is None
    assert Book(book, path, FACTS, codec="av1").find(requests[0]) is None
    assert Book(book, path, FACTS, codec="h264").find(requests[0]) == book.with_name("a.mp4"), "as without a codec"


@pytest.mark.parametrize(("first", "second"), [("a.mp4", "a.mp4"), ("a_%d.png", "a_0.png"), ("a_0.png", "a_%d.png")])
def test_a_request_is_not_done_where_another_has_replaced_its_file(tmp_path, first, second):
    path, book = tmp_path / "all.jsonl", tmp_path / "out" / "done.jsonl"
    asked = (
        {"prompt": "red", "output": first},
        {"prompt": "blue", "output": second},
        {"prompt": "a", "output": "b.mp4"},
    )
    red, blue, other = write_requests(path, *asked)
    for request in (other, red, blue):
        Book(book, path, FACTS).add(request, book.with_name(request.output))
        first_file(book.with_name(request.output)).write_text(request.prompt[0])
    again = Book(book, path, FACTS)
    assert [again.find(request) for request in (red, blue, other)] == [
        None,
        book.with_name(second),
        tmp_path / "out" / "b.mp4",
    ]
    again.add(red, book.with_name(first))
    again = Book(book, path, FACTS)
    assert [again.find(request) for request in (red, blue)] == [book.with_name(first), None]


def test_a_request_whose_given_file_changed_is_not_done(tmp_path):
    path, given = tmp_path / "all.jsonl", tmp_path / "a.gif"
    given.write_text("one")
    (request,) = write_requests(path, {"task": "loop", "video": "a.gif"})
    book = tmp_path / "out" / "done.jsonl"
    Book(book, path, FACTS).add(request, book.with_name("loop.mp4"))
    book.with_name("loop.mp4").write_text("")
    assert Book(book, path, FACTS).find(request) == book.with_name("loop.mp4")
    given.write_text("two")
    assert Book(book, path, FACTS).find(request) is None


@pytest.mark.parametrize(("mine", "yours"), [("x_3.png", "x_%d.png"), ("x_%d.png", "x_3.png")])
def test_frames_of_one_file_of_requests_do_not_replace_those_of_another(tmp_path, mine, yours):
    book = tmp_path / "out" / "done.jsonl"
    (request,) = write_requests(tmp_path / "mine" / "all.jsonl", {"prompt": "a", "output": mine})
    Book(book, tmp_path / "mine" / "all.jsonl", FACTS).add(request, book.with_name(mine))
    first_file(book.with_name(mine)).write_text("")
    other = Book(book, tmp_path / "yours" / "all.jsonl", FACTS)
    with pytest.raises(UserError, match=r"x_.*\.png is from the requests .*mine/all\.jsonl, .* would replace it"):
        other.check(book.with_name(yours))
    other.check(book.with_name("x_a.png"))


def test_two_files_of_requests_of_one_name_do_not_replace_each_other(tmp_path):
    book = tmp_path / "out" / "done.jsonl"
    paths = [tmp_path / folder / "all.jsonl" for folder in ("mine", "yours")]
    for path in paths:
        (request,) = write_requests(path, {"prompt": path.parent.name, "output": "a.mp4"})
        if path is paths[0]:
            Book(book, path, FACTS).check(book.with_name("a.mp4"))
            Book(book, path, FACTS).add(request, book.with_name("a.mp4"))
            book.with_name("a.mp4").write_text("")
    with pytest.raises(
        UserError, match=r"a\.mp4 is from the requests .*mine/all\.jsonl, .* of .*yours/all\.jsonl would"
    ):
        Book(book, paths[1], FACTS).check(book.with_name("a.mp4"))
    Book(book, paths[0], FACTS).check(book.with_name("a.mp4"))
    book.with_name("a.mp4").unlink()
    Book(book, paths[1], FACTS).check(book.with_name("a.mp4"))


NAMES = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=12)
ODD = st.sampled_from(
    ["[a]", "50%d", "%02d", "e\u0301", "é", "a.b.c", "  a ", "-rf", "赤" * 40, "🐕", "A", "a", "\\", "*?"]
)


@given(asked=st.lists(st.tuples(NAMES | ODD, st.none() | NAMES | ODD, st.integers(0, 2)), min_size=1, max_size=6))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_whatever_prompts_and_outputs_are_called_nothing_is_lost_or_replaced(asked, tmp_path_factory):
    """Requests as of several calls, one after the other: every video that was made is there, under the name told."""
    folder, kept = tmp_path_factory.mktemp("made"), {}
    for prompt, output, shade in asked:
        output = f"{output}.png" if output is not None and is_safe_name(f"{output}.png") else None
        request = Request(prompt=(prompt,), output=output)
        wanted = folder / (output or f"{file_stem(prompt)}_seed0.png")
        Places().add(request, wanted)
        with contextlib.ExitStack() as stack:
            files = OutputFiles(stack, [request], [wanted], codec=None, facts=FACTS)
            files.open(0, job(request))(np.full((1, 8, 8, 3), shade, np.uint8))
            path = first_file(files.close(0))
        if output is None:
            assert kept.get(path) in (None, path.read_bytes()), "a name that nobody chose replaces nothing"
        kept[path] = path.read_bytes()
        assert is_safe_name(path.name)
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept
