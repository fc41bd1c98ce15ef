"""The benchmark of clips without captions: what it takes for its claim, and the whole way as a user runs it."""

import json

import pytest

from sora_jax.benchmarks import caption_free
from tests.toy import __file__ as toy

TOY, TOY_CAPTIONS = toy, toy.replace("toy.py", "toy_captions.py")


def test_the_claim_is_of_the_best_way_to_ask():
    ways = {"embedded": 0.5, "by_text": 0.7, "by_moved_text": 0.6, "alone": 0.2, "few": 0.4, "all": 0.8, "like": 0.9}
    found = {name: {"all": share, "colour": share, "motion": share / 2} for name, share in ways.items()}
    figures = {one.name: one.value for one in caption_free._claim(found)}
    assert figures == pytest.approx({"gain_colour": 0.3, "gain_motion": 0.15, "of_all": 0.875})


@pytest.mark.slow
def test_it_is_measured_as_a_user_runs_it(python, toy_workdir, tmp_path):
    path, folder = tmp_path / "free.json", tmp_path / "free"
    asked = [
        f"--config={TOY}",
        f"--captioner={TOY_CAPTIONS}",
        f"--base={toy_workdir}",
        "--clips=96",
        "--captioned=0.25",
    ]
    command = ("-m", "sora_jax.benchmarks.caption_free", f"--workdir={folder}", f"--json={path}", *asked)
    done = python(*command, "--prompts=4", "--draws=1", fresh=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    ways = ("few", "all", "empty", "embedded", "by_text", "by_moved_text", "alone", "like")
    assert {f"{score}_{way}" for score in ("colour", "motion", "shape", "all") for way in ways} <= found.keys()
    assert {"gain_colour", "gain_motion", "of_all", "retrieval_r1"} <= found.keys()
