"""What `sora_jax.sample` makes of its flags; `test_commands.py` runs it as a user does."""

import pytest
from absl.testing import flagsaver

from sora_jax import sample
from sora_jax.core.errors import UserError
from sora_jax.train.settings import read_settings
from sora_jax.train.workdir import Workdir


@pytest.fixture(scope="module")
def settings(toy_config):
    return read_settings(toy_config())


def asked(settings, folder="run", **given):
    """Returns the canvases and the paths of a call with these flags."""
    with flagsaver.flagsaver(**given):
        canvases, frames = sample.read_requests(settings)
        return canvases, sample.output_paths(Workdir(folder), canvases, frames)


def test_one_value_serves_all_prompts_and_several_go_in_pairs(settings):
    canvases, _ = asked(settings, prompt=["a", "b"], size=["8x16", "24X8"], frames=[5], seed=[3, 4], fps=2.0)
    assert [(c.prompt, c.grid, c.seed, c.fps) for c in canvases] == [("a", (2, 1, 2), 3, 2.0), ("b", (2, 3, 1), 4, 2.0)]


def test_what_is_not_said_is_as_in_the_config(settings):
    (canvas,), _ = asked(settings, prompt=["a"])
    assert (canvas.grid, canvas.seed, canvas.fps) == ((2, 2, 2), 0, settings.sampling.fps)


def test_files_are_named_by_prompt_and_kind(settings, tmp_path):
    _, paths = asked(settings, tmp_path, prompt=["A b!", "a/b", "c"], frames=[5, 5, 1])
    folder = tmp_path / "samples" / "prompted"
    assert paths == [folder / "a_b_seed0.mp4", folder / "a_b_seed0_2.mp4", folder / "c_seed0.png"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": [""]}, "the prompt '' is empty"),
        ({"size": ["wide"]}, "--size='wide' is not HEIGHTxWIDTH in px, such as 32x32"),
        ({"size": ["16"]}, "is not HEIGHTxWIDTH"),
        ({"size": ["0x16"]}, "is not HEIGHTxWIDTH"),
        ({"size": ["-8x16"]}, "is not HEIGHTxWIDTH"),
        ({"size": ["8x16x3"]}, "is not HEIGHTxWIDTH"),
        ({"size": ["160x160"]}, "a row of this run holds 36: fewer frames or a smaller size"),
        ({"frames": [4]}, "frames 4 is not 1 plus a multiple of 4 (autoencoder); nearest: 1, 5"),
        ({"frames": [0]}, "frames 0 is not 1 plus a multiple of 4 (autoencoder); nearest: 1"),
        ({"frames": [-3]}, "frames -3 is not 1 plus"),
        ({"seed": [-1]}, "seed -1 must be 0 or more"),
        ({"seed": [10**30]}, "must be 0 or more and less than 4294967296"),
        ({"seed": [1, 2]}, "2 --seed for 1 prompts: give one for all, or one for each"),
        ({"fps": 0.0}, "0 frames per second must be more than 0"),
        ({"fps": float("nan")}, "nan frames per second must be more than 0"),
        ({"output": ["a"]}, "cannot write a: the ending must be one of .mp4, .gif, .webp, .png"),
        ({"output": ["a.png"]}, "a video ends in .mp4, .gif or .webp"),
        ({"output": ["a.mp4", "b.mp4"]}, "2 --output for 1 prompts"),
        ({"prompt": ["a", "b"], "output": ["a.mp4", "a.mp4"]}, "two --output are a.mp4"),
        ({"prompt": ["a", "b", "c"], "size": ["8x8", "8x8"]}, "2 --size for 3 prompts"),
    ],
)
def test_what_cannot_be_made_is_told(settings, given, said):
    with pytest.raises(UserError) as caught:
        asked(settings, **{"prompt": ["a red circle"]} | given)
    assert said in str(caught.value)
