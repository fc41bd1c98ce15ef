"""A video that is to be like a clip: asked for, refused in a sentence, cut as in training, and left out by guidance."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.core.tree import abstract_model
from sora_jax.generate.canvas import lay_out
from sora_jax.generate.given import GivenArrays
from sora_jax.generate.job import check_request, read_job
from sora_jax.generate.request import Request, make_requests, read_requests
from sora_jax.generate.sampler import make_solver
from tests.generate.test_sampler import FIRST, LAYOUT, OTHERS, SOLVER
from tests.generate.test_tasks import LIMITS, make, video
from tests.small import generator, random_params

GIVEN = {"a": video(*range(20)), "tiny": video(1, 2, 3)[:, :1, :1]}
READ = GivenArrays(GIVEN, fps=6.0)
E = 4


class Embeds:
    """Notes what is embedded."""

    def __init__(self):
        self.seen = []

    def __call__(self, pixels_THWC, fps):
        self.seen.append((pixels_THWC.shape, fps))
        return np.eye(E, dtype=np.float32)[0]


def test_the_clip_is_cut_as_in_training_and_embedded_once_for_all_windows():
    embeds = Embeds()
    limits = dataclasses.replace(LIMITS, embed=embeds)
    (asked,) = make_requests([], like="a", frames=[29])
    job = read_job(asked, limits, READ)
    assert (job.prompts, job.size, job.fps, job.frames) == (("",), (4, 4), 8.0, 29), "all else is as samples have it"
    assert embeds.seen == [], "nothing is embedded before it is made"
    _, canvases, _ = make(job, limits=limits)
    assert len(canvases) == 3
    assert all(canvas.embedding_E[0] == 1 for canvas in canvases)
    assert embeds.seen == [((13, 4, 4, 3), 6.0)], "of 20 frames as many as a window has"
    assert make(read_job(Request(prompt=("red",)), limits, READ), limits=limits)[1][0].embedding_E is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"task": "edit", "prompt": ("red",), "video": ("a",), "like": "a"}, "1 files to --like for task edit"),
        ({"like": None}, "0 prompts for task text, which takes a prompt"),
    ],
)
def test_what_no_model_could_do_is_refused(values, said):
    with pytest.raises(UserError, match=said):
        Request(**values)


def test_a_model_that_is_told_none_a_missing_file_and_a_tiny_clip_are_refused():
    asked, limits = Request(like="a", prompt=("red",)), dataclasses.replace(LIMITS, embed=Embeds())
    with pytest.raises(UserError, match=r"this run is told no embeddings of clips \(transformer.embedding is None\)"):
        check_request(asked, LIMITS, READ)
    with pytest.raises(UserError, match=r"nowhere.mp4 does not exist"):
        check_request(Request(like="nowhere.mp4"), limits)
    with pytest.raises(UserError, match="tiny: 1x1 pixels are smaller than one token of 2x2"):
        check_request(Request(like="tiny"), limits, READ)


def test_a_line_of_a_file_may_ask_for_it(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"like": "a.mp4", "seed": 3}')
    (request,) = read_requests(path)
    assert request.files() == [str(tmp_path / "a.mp4")]
    assert request.facts() == {"task": "text", "seed": 3, "like": str(tmp_path / "a.mp4")}


def test_guidance_leaves_it_out_together_with_the_text():
    """At scale 0 only what is left out is followed: as if neither had been given."""
    structure, shapes, _ = abstract_model(generator(3, embedding=E, depth=1))
    params = random_params(shapes)
    solver = make_solver(structure, dataclasses.replace(SOLVER, steps=1, method="euler"), dtype=jnp.dtype(jnp.float32))
    layout = dataclasses.replace(LAYOUT, embedding=E)
    like_E = np.full(E, E**-0.5, np.float32)

    def solved(**changes):
        canvases = [dataclasses.replace(FIRST, **changes), *OTHERS[:1]]
        (batch,), places = lay_out(canvases, layout, rows=2)
        done = np.asarray(solver(params, batch))
        return [done[place.row, place.tokens] for place in places]

    nothing, other = solved(prompt="", guidance=1.0)
    left_out, beside = solved(embedding_E=like_E, guidance=0.0)
    np.testing.assert_allclose(left_out, nothing, atol=1e-5)
    np.testing.assert_allclose(beside, other, atol=1e-5, err_msg="nothing of it reaches its neighbour")
    seen, _ = solved(prompt="", embedding_E=like_E, guidance=1.0)
    assert np.abs(seen - nothing).max() > 1e-2, "it is seen without a text"
