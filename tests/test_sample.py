"""What `sora_jax.sample` makes of its flags; `test_commands.py` runs it as a user does."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from sora_jax.core.errors import UserError
from sora_jax.experiment.loading import limits_of
from sora_jax.experiment.sample_files import paths_of
from sora_jax.experiment.settings import read_settings
from sora_jax.generate.job import check_request, read_job
from sora_jax.generate.outputs import output_paths
from sora_jax.generate.request import make_requests, read_requests
from sora_jax.generate.write import is_safe_name


@pytest.fixture(scope="module")
def settings(toy_config):
    return read_settings(toy_config())


def asked(settings, folder="run", **given):
    """Returns the jobs and the paths of a call with these flags."""
    requests = make_requests(given.pop("prompt"), **given)
    limits = dataclasses.replace(limits_of(settings), room=64e9)
    outcomes = [check_request(request, limits) for request in requests]
    jobs = [read_job(request, limits) for request in requests]
    return jobs, output_paths(Path(folder), requests, outcomes, source=None, codec=None)


def test_one_value_serves_all_prompts_and_several_go_in_pairs(settings):
    jobs, _ = asked(settings, prompt=["a", "b"], size=["8x16", "24X8"], frames=[5], seed=[3, 4], fps=2.0)
    found = [(job.prompts, job.size, job.frames, job.request.seed, job.fps) for job in jobs]
    assert found == [(("a",), (8, 16), 5, 3, 2.0), (("b",), (24, 8), 5, 4, 2.0)]


def test_what_is_not_said_is_as_in_the_config(settings):
    (job,), _ = asked(settings, prompt=["a"])
    assert (job.size, job.frames, job.request.seed, job.fps) == ((16, 16), 5, 0, settings.sampling.fps)


def test_seconds_are_the_nearest_number_of_frames(settings):
    jobs, _ = asked(settings, prompt=["a", "b", "c"], seconds=["0.1", "0.7", "2"])
    assert [job.frames for job in jobs] == [1, 5, 17]


def test_files_are_named_by_prompt_and_kind(settings, tmp_path):
    _, paths = asked(settings, tmp_path, prompt=["A b!", "a/b", "c"], frames=[5, 5, 1])
    assert paths == [tmp_path / "a_b_seed0.mp4", tmp_path / "a_b_seed0_2.mp4", tmp_path / "c_seed0.png"]


@pytest.mark.parametrize(
    "prompt",
    [
        "../../etc/passwd",
        "/etc/cron.d/a",
        "..\\..\\windows\\con",
        "nul\0byte\x1b[2J",
        "half \ud800 a pair",
        "\u202eright to left \u05d0",
        "🐕🐕🐕",
        "-rf .hidden",
        "%s {x} $(id) `id`",
        "A" * 180,
    ],
)
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_whatever_a_prompt_says_its_file_is_short_plain_and_in_the_folder(settings, tmp_path, prompt, seed):
    _, paths = asked(settings, tmp_path, prompt=[prompt], seed=[seed])
    (path,) = paths
    assert path.parent == tmp_path
    assert path.resolve().parent == tmp_path.resolve()
    assert re.fullmatch(r"[^\W_]\w*\.mp4", path.name)
    assert is_safe_name(path.name)
    assert len(path.name) <= 120


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": [""]}, "the prompt '' is empty"),
        ({"size": ["wide"]}, "size 'wide' is not HEIGHTxWIDTH in px, such as 32x32"),
        ({"size": ["16"]}, "is not HEIGHTxWIDTH"),
        ({"size": ["0x16"]}, "is not HEIGHTxWIDTH"),
        ({"size": ["-8x16"]}, "is not HEIGHTxWIDTH"),
        ({"size": ["8x16x3"]}, "is not HEIGHTxWIDTH"),
        ({"size": ["160000x160000"]}, "px at once, which takes about"),
        ({"frames": [4]}, "frames 4 is not 1 plus a multiple of 4 (autoencoder); nearest: 1, 5"),
        ({"frames": [0]}, "frames 0 must be 1 or more"),
        ({"frames": [-3]}, "frames -3 must be 1 or more"),
        ({"seed": [-1]}, "seed -1 must be 0 or more"),
        ({"seed": [10**30]}, "must be 0 or more and less than 4294967296"),
        ({"seed": [1, 2]}, "2 --seed for 1 prompts: give one for all, or one for each"),
        ({"fps": 0.0}, "0 frames per second must be more than 0"),
        ({"fps": float("nan")}, "nan frames per second must be more than 0"),
        ({"output": ["a"]}, "cannot write a: the ending must be one of .mp4, .webm, .gif, .webp, .png"),
        ({"output": ["a.png"]}, "a video ends in .mp4, .webm, .gif or .webp"),
        ({"output": ["a.mp4", "b.mp4"]}, "2 --output for 1 prompts"),
        ({"prompt": ["a", "b"], "output": ["a.mp4", "a.mp4"]}, "two --output are a.mp4"),
        ({"prompt": ["a", "b"], "output": ["a.mp4", "./b/../a.mp4"]}, "two --output are b/../a.mp4"),
        ({"prompt": ["a", "b", "c"], "size": ["8x8", "8x8"]}, "2 --size for 3 prompts"),
    ],
)
def test_what_cannot_be_made_is_told(settings, given, said):
    with pytest.raises(UserError) as caught:
        asked(settings, **{"prompt": ["a red circle"]} | given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt": "a", "frames": 4}, "frames 4 is not 1 plus a multiple of 4"),
        ({"prompt": "a", "output": "../a.mp4"}, "output '../a.mp4' must be the name of a file"),
        ({"prompt": "a", "output": "a.doc"}, "a.doc: the ending must be one of .mp4"),
        ({"prompt": "a", "output": "first.mp4"}, "first.mp4 is that of line 1, too"),
    ],
)
def test_what_a_file_of_requests_cannot_have_is_told_with_its_line(settings, tmp_path, line, said):
    path = tmp_path / "all.jsonl"
    # What is empty counts, and so does nothing but the file: not which of the requests it is.
    path.write_text(f'{{"prompt": "a", "output": "first.mp4"}}\n\n{{"prompt": "b"}}\n{json.dumps(line)}\n')
    with pytest.raises(UserError, match=r"all\.jsonl, line 4: ") as caught:
        paths_of(tmp_path, read_requests(path), limits_of(settings), file=path, codec=None)
    assert said in str(caught.value)
    assert str(caught.value).count("line 4") == 1
