"""A run from Python: two calls to a clip, and everything else that a command does."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import sora_jax
from sora_jax.core.errors import UserError
from sora_jax.data.media.guarded import GuardedReader
from sora_jax.data.media.writer import write_clip
from sora_jax.experiment import evaluation, models
from sora_jax.experiment.sample_files import write_samples
from sora_jax.experiment.session import Session
from sora_jax.generate.job import read_job
from sora_jax.generate.request import Request, make_requests, read_requests
from sora_jax.video import latents

CLIP = np.random.default_rng(0).integers(0, 256, size=(5, 16, 16, 3), dtype=np.uint8)
RED = "a red circle moves right"


@pytest.fixture(scope="module")
def workdir(toy_workdir, tmp_path_factory):
    """A copy of the toy run, to which samples and evaluations are written."""
    return Path(shutil.copytree(toy_workdir, tmp_path_factory.mktemp("session") / "toy"))


@pytest.fixture(scope="module")
def loads():
    """Returns a list to which each loading of a model is added."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("load_codec", "load_generator"):
            load = getattr(models, name)
            patch.setattr(models, name, lambda *a, _load=load, _name=name, **k: found.append(_name) or _load(*a, **k))
        yield found


@pytest.fixture(scope="module")
def run(workdir, loads):
    opened = sora_jax.open_run(workdir, devices=jax.devices()[:1])
    assert loads == [], "until they are needed"
    return opened


@pytest.fixture
def jobs(run, monkeypatch):
    """Returns what has the jobs of `run.sample`, of which nothing is made."""
    found = []
    monkeypatch.setattr("sora_jax.experiment.session.make_all", lambda *asked: found.extend(asked[2]) or [])
    monkeypatch.setattr(type(run.models), "sampler", lambda *_, **__: None)
    monkeypatch.setattr(type(run.models), "params", None)

    def jobs_of(*prompts, **asked):
        found.clear()
        run.sample(*prompts, **asked)
        return list(found)

    return jobs_of


@pytest.fixture
def decodes(monkeypatch):
    """Returns a list to which each file that is decoded as a whole is added, and a list of those only looked into."""
    whole, first = [], []
    read = GuardedReader.read_clip

    def counted(self, path, **options):
        (whole if options.get("max_frames") is None else first).append(Path(path).name)
        return read(self, path, **options)

    monkeypatch.setattr(GuardedReader, "read_clip", counted)
    return whole, first


def test_the_package_alone_brings_no_jax():
    script = "import sora_jax, sys; assert callable(sora_jax.open_run); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_two_calls_make_clips_and_models_load_once(run, loads):
    clips = run.sample([RED, "a blue square"], size=[(16, 24), "8x16"], frames=[9, 5], seed=3, steps=1)
    assert [(clip.shape, clip.dtype) for clip in clips] == [((9, 16, 24, 3), np.uint8), ((5, 8, 16, 3), np.uint8)]
    (again,) = run.sample("a blue square", size=(8, 16), frames=5, seed=3, steps=1)
    assert np.abs(again.astype(int) - clips[1]).max() <= 1, "whatever shares its batch"
    (other,) = run.sample("a blue square", size=(8, 16), frames=5, seed=4, steps=1)
    assert np.abs(other.astype(int) - clips[1]).max() > 1
    assert sorted(loads) == ["load_codec", "load_generator"]


def test_what_is_not_said_is_as_in_the_config(run):
    (clip,) = run.sample(RED, steps=1)
    assert clip.shape == (run.limits.frames, *run.limits.size, 3)


def test_an_opened_run_is_not_pickled(run):
    with pytest.raises(UserError, match="cannot be pickled or copied: open it again"):
        pickle.dumps(run)


def test_arrays_are_taken_as_files_are(run, tmp_path):
    write_clip(tmp_path / "a.png", CLIP[:1], fps=1)
    asked = {"frames": 5, "keep_pixels": True, "steps": 1}
    (of_array,) = run.sample(RED, task="animate", image=CLIP[0], **asked)
    (of_file,) = run.sample(RED, task="animate", image=tmp_path / "a.png", **asked)
    np.testing.assert_array_equal(of_array, of_file)
    np.testing.assert_array_equal(of_array[0], CLIP[0])


def test_a_mask_says_where_a_video_is_made_anew(run):
    mask = np.zeros((16, 16), bool)
    mask[:8] = True
    (clip,) = run.sample(RED, task="fill", video=CLIP, mask=mask, keep_pixels=True, fps=4.0, steps=1)
    np.testing.assert_array_equal(clip[:, 8:], CLIP[:, 8:])
    assert (clip[:, :8] != CLIP[:, :8]).any()


def test_two_videos_are_connected(run):
    (clip,) = run.sample([RED, "a blue square"], task="connect", video=[CLIP, CLIP[::-1]], frames=4, steps=1)
    assert clip.shape == (14, 16, 16, 3)


def test_what_is_made_faster_has_the_rate_of_the_run_before(run, jobs):
    usual = run.limits.fps
    for task in ("interpolate", "upscale"):
        (job,) = jobs(task=task, video=CLIP, fps=2 * usual)
        assert (job.frames, job.fps) == (9, 2 * usual)
    (job,) = jobs(RED, task="edit", video=CLIP, fps=2 * usual)
    assert (len(job.clips[0]), job.fps) == (5, 2 * usual)


def test_numbers_of_numpy_and_jax_are_numbers(jobs):
    asked = {"size": np.array([16, 24]), "frames": np.int64(5), "seed": jax.numpy.array(3), "fps": np.float32(4)}
    (job,) = jobs(RED, **asked)
    assert (job.size, job.fps) == ((16, 24), 4)
    facts = {"task": "text", "prompt": [RED], "size": "16x24", "frames": 5, "fps": 4.0, "seed": 3}
    assert json.loads(json.dumps(job.request.facts())) == facts


@pytest.mark.parametrize("several", [range(2), np.arange(2), (0, 1)])
def test_any_sequence_serves_several_prompts(jobs, several):
    found = jobs([RED, RED], seed=several, frames=(1, 5))
    assert [(job.request.seed, job.frames) for job in found] == [(0, 1), (1, 5)]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": []}, "nothing to sample"),
        ({"size": (17, 16)}, "height 17 is not divisible by 8"),
        ({"task": "edit", "video": CLIP.astype(np.float32)}, r"video 1 is float32 \(5, 16, 16, 3\): give uint8"),
        ({"task": "edit", "video": CLIP[..., 0]}, r"video 1 is uint8 \(5, 16, 16\): give uint8"),
        ({"task": "edit", "video": "no.mp4"}, "no.mp4 does not exist"),
        ({"steps": 0}, "steps"),
        ({"cache": -1.0}, "cache -1 must be 0 or more"),
        ({"cache": float("nan")}, "cache nan must be 0 or more"),
        ({"solver": "magic"}, "solver 'magic' is not one of: euler"),
        ({"frames": 5.0}, "frames 5.0 is not a whole number"),
        ({"seed": 1.5}, "seed 1.5 is not a whole number"),
        ({"seed": True}, "seed True is not a whole number"),
        ({"steps": 2.5}, "steps 2.5 is not a whole number"),
        ({"prompt": [None]}, r"prompt \(None,\) is not text"),
        ({"fps": "8"}, "fps '8' is not a number"),
        ({"size": 24}, "size 24 has 1 numbers: give height and width"),
        ({"size": (16, 16, 3)}, r"size \(16, 16, 3\) has 3 numbers"),
        ({"size": (16.0, 16)}, r"size \(16.0, 16\) is not a whole number"),
        ({"task": "animate", "image": [CLIP[0], CLIP[1]]}, "2 of image: give one"),
        ({"task": "edit", "video": [[[1], [1, 2]]]}, "video 1 is no array"),
        ({"output": "a.mp4"}, "no file is written: leave output out"),
        ({"colour": "red"}, "'colour' is none of task, prompt"),
    ],
)
def test_what_cannot_be_made_is_told(run, asked, said):
    with pytest.raises(UserError, match=said):
        run.sample(**{"prompt": RED} | asked)


@pytest.mark.parametrize(
    ("latent", "said"),
    [
        (np.zeros((1, 2, 4, 4, 4), np.float32), r"the latent is float32 \(1, 2, 4, 4, 4\): .* \(t, h, w, 4\)"),
        (np.zeros((2, 4, 4, 3), np.float32), r"the latent is float32 \(2, 4, 4, 3\)"),
        (np.zeros((2, 4, 4, 4), int), r"the latent is int64 \(2, 4, 4, 4\)"),
        (np.zeros((0, 4, 4, 4), np.float32), r"the latent is float32 \(0, 4, 4, 4\)"),
        (np.full((2, 4, 4, 4), np.nan), "128 of 128 numbers of the latent are not finite"),
    ],
)
def test_what_is_no_latent_is_told(run, latent, said):
    with pytest.raises(UserError, match=said):
        run.decode(latent)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"part": "autoencoder", "clips": 0}, "--clips=0 must be at least 1"),
        ({"part": "generator", "guidance": float("nan")}, "guidance scale nan"),
        ({"clips": 2.5}, "clips 2.5 is not a whole number"),
        ({"draws": "2"}, "draws '2' is not a whole number"),
        ({"steps": 2.5}, "steps 2.5 is not a whole number"),
        ({"part": "autoencoder", "data": 3}, "data 3 is not text"),
    ],
)
def test_numbers_that_judge_nothing_are_told(run, asked, said):
    with pytest.raises(UserError, match=said):
        run.evaluate(**asked)


def test_a_folder_to_judge_may_be_a_path(run, tmp_path):
    write_clip(tmp_path / "a.png", CLIP[:1], fps=1)
    assert run.evaluate("autoencoder", data=tmp_path, clips=1)["autoencoder"]["data"] == str(tmp_path)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"workdir": None}, "workdir None is not text"),
        ({"ema": "0.1"}, "ema '0.1' is not a number"),
        ({"devices": []}, r"devices \[\] are none of jax"),
        ({"devices": 1}, "devices 1 are none of jax"),
        ({"lora": None}, "lora None is not text or a list of texts"),
        ({"lora": [("a.safetensors", 0.5)]}, "is not text or a list of texts"),
        ({"lora": {"a.safetensors": "0.5"}}, "--lora=a.safetensors: the weight '0.5' is not a number"),
    ],
)
def test_what_opens_no_run_is_told(workdir, asked, said):
    with pytest.raises(UserError, match=said):
        sora_jax.open_run(**{"workdir": workdir} | asked)


def test_rounds_and_captions_have_numbers_that_they_can_go_by(run):
    with pytest.raises(UserError, match="most is 0: it must be at least 1"):
        run.rounds(most=0)
    with pytest.raises(UserError, match="0 frames per second must be more than 0"):
        run.describe([CLIP], fps=0)


def test_a_run_may_be_at_home(workdir, monkeypatch):
    monkeypatch.setenv("HOME", str(workdir.parent))
    assert sora_jax.open_run(f"~/{workdir.name}").models.workdir.path == workdir


@pytest.mark.parametrize("checkpoint", ["newest", -1, 2.5])
def test_a_checkpoint_is_a_step_or_the_latest(workdir, checkpoint):
    with pytest.raises(UserError, match=r"is neither a step nor latest"):
        sora_jax.open_run(workdir, checkpoint=checkpoint)


def test_names_that_mean_nothing_are_told(workdir, run):
    with pytest.raises(UserError, match="weights 'best' is not one of: ema, params"):
        sora_jax.open_run(workdir, weights="best")
    with pytest.raises(UserError, match="part 'decoder' is not one of: autoencoder"):
        run.evaluate("decoder")
    with pytest.raises(UserError, match="solver 'magic' is not one of"):
        run.evaluate(solver="magic")


def test_another_checkpoint_and_its_last_weights_can_be_opened(workdir):
    opened = sora_jax.open_run(workdir, checkpoint=6, weights="params", devices=jax.devices()[:1])
    facts = opened.models.facts()
    assert (facts["step"], facts["weights"]) == (6, "params")


def test_a_clip_becomes_a_latent_and_a_latent_a_clip(run):
    codec = run.models.codec
    latent = run.encode(CLIP)
    assert (latent.dtype, latent.shape[0]) == (np.float32, 2)
    raw = codec.encode(CLIP[None])
    np.testing.assert_array_equal(latent, latents.normalise(raw, codec.mean_C, codec.scale_C)[0])
    np.testing.assert_array_equal(run.decode(latent), codec.reconstruct(CLIP[None])[0])
    with pytest.raises(UserError, match="frames 4 is not 1 plus a multiple of 4"):
        run.encode(CLIP[:4])


def test_scores_are_returned_and_written(run, workdir):
    before = json.loads((workdir / "evaluation.json").read_text())
    found = run.evaluate("generator", steps=1, draws=2)
    assert found["shapes"]["prompts"] == 2 * before["shapes"]["prompts"]
    assert found["autoencoder"] == before["autoencoder"], "what was not asked for stays"
    assert json.loads((workdir / "evaluation.json").read_text()) == found
    with pytest.raises(UserError, match="--data is for the autoencoder alone"):
        run.evaluate(data="tests")


def test_jobs_join_while_others_are_made(run):
    """As a server has it, which does not know what will be asked for."""
    frames: list[list[np.ndarray]] = [[], []]
    rounds = run.rounds(steps=1)
    requests = [Request(prompt=(RED,), frames=29), Request(prompt=(RED,), frames=5, seed=1)]
    rounds.add(read_job(requests[0], run.limits), frames[0].append)
    assert rounds.step() == []
    rounds.add(read_job(requests[1], run.limits), frames[1].append)
    while rounds:
        rounds.step()
    alone = [run.sample(RED, frames=one.frames, seed=one.seed, steps=1)[0] for one in requests]
    for pieces, clip in zip(frames, alone, strict=True):
        assert np.abs(np.concatenate(pieces).astype(int) - clip).max() <= 1


def test_every_given_video_is_decoded_once(run, workdir, tmp_path, decodes):
    whole, first = decodes
    for name in ("a.gif", "b.gif"):
        write_clip(tmp_path / name, CLIP, fps=8)
    lines = [{"task": "edit", "video": name, "prompt": "red", "negative": "Blue."} for name in ("a.gif", "b.gif")]
    path = tmp_path / "edits.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    write_samples(run, read_requests(path), solver=run.solver(steps=1), source=str(path))
    assert sorted(whole) == ["a.gif", "b.gif"]
    assert sorted(first) == ["a.gif", "b.gif"], "its first frames, before anything was made"
    made = workdir / "samples" / "edits"
    assert {one.name for one in made.glob("*.mp4")} == {"edit_red_seed0.mp4", "edit_red_seed0_2.mp4"}
    write_samples(run, read_requests(path), solver=run.solver(steps=1), source=str(path))
    assert len(whole) == 2, "what is done is not even decoded"


def test_what_only_a_whole_video_tells_is_said_with_its_line(run, tmp_path):
    write_clip(tmp_path / "short.gif", CLIP[:3], fps=8)
    lines = [{"prompt": "red", "frames": 1}, {"task": "loop", "video": "short.gif", "prompt": "red"}]
    path = tmp_path / "late.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"late.jsonl, line 2: .*short.gif has 3 frames and loop needs 5 or more"):
        write_samples(run, read_requests(path), solver=run.solver(steps=1), source=str(path))


def test_steps_that_are_asked_for_count_beside_clips_as_well(run):
    session: Any = Session
    sampling = dataclasses.replace(run.settings.sampling, context_steps=4)
    one = types.SimpleNamespace(settings=dataclasses.replace(run.settings, sampling=sampling))
    assert session.solver(one).facts() == {**run.solver().facts(), "context_steps": 4}
    assert session.solver(one, steps=9).facts() == {**run.solver().facts(), "steps": 9}
    assert evaluation.changed(one.settings, steps=9).sampling.context_steps is None
    assert evaluation.changed(one.settings, guidance=2.0).sampling.context_steps == 4


def test_requests_of_a_file_are_made_again_in_other_steps_beside_clips(run, workdir, tmp_path):
    path = tmp_path / "again.jsonl"
    path.write_text(json.dumps({"prompt": "red", "frames": 1}))
    for context_steps, books in ((None, 1), (2, 2), (2, 2)):
        solver = dataclasses.replace(run.solver(steps=1), context_steps=context_steps)
        write_samples(run, read_requests(path), solver=solver, source=str(path))
        assert len((workdir / "samples" / "again" / "done.jsonl").read_text().splitlines()) == books


def test_a_name_that_is_no_utf_8_is_written_out(run, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("tqdm.tqdm.write", lambda _, text: told.append(text))
    request = Request(prompt=(RED,), frames=1, output=f"{tmp_path}/a\udcff.png")
    write_samples(run, [request], solver=run.solver(steps=1))
    assert told[0].encode().startswith(f"{tmp_path}/a\\udcff.png".encode())


def test_a_file_says_which_weights_made_it(run, tmp_path):
    (request,) = make_requests([RED], frames=[1], output=[str(tmp_path / "a.png")])
    write_samples(run, [request], solver=run.solver(steps=1))
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (16, 16)
        said = " ".join(map(str, image.info.values()))
    assert f'"step": {run.models.facts()["step"]}' in said, said
    assert f'"solver": "{run.solver().method}", "steps": 1' in said, said
