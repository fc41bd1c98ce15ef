"""The commands as a user types them: what they make, and how they end a mistake."""

import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl.flags import FLAGS
from PIL import Image
from safetensors.numpy import save_file

from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import write_clip
from sora_jax.models import perceptual
from tests import processes
from tests.conftest import ROOT

TOY = "--config=tests/toy.py"
COMMANDS = ("main", "prepare", "sample", "evaluate", "export")


@pytest.fixture
def run(python):
    def command(name, *arguments, **how):
        return python("-m", f"sora_jax.{name}", *arguments, **how)

    return command


@pytest.fixture(scope="module")
def sampled(python, toy_workdir, tmp_path_factory):
    """Three prompts in one call: of several sizes, lengths and seeds, each to a file of another kind."""
    folder = tmp_path_factory.mktemp("sampled")
    outputs = [folder / name for name in ("deep/a.mp4", "b.gif", "c.png")]
    done = python(
        "-m",
        "sora_jax.sample",
        f"--workdir={toy_workdir}",
        "--prompt=a red circle moves right",
        "--prompt=a blue square on a light background",
        "--prompt=green",
        "--size=16x24",
        "--size=8x16",
        "--size=24x8",
        "--frames=9",
        "--frames=5",
        "--frames=1",
        "--seed=3",
        *(f"--output={path}" for path in outputs),
    )
    return done, outputs


def test_commands_can_be_imported_side_by_side():
    """None defines a flag, or changes the arguments of whoever imports it."""
    flags, arguments = set(FLAGS), list(sys.argv)
    modules = [path.with_suffix("").relative_to(ROOT) for path in (ROOT / "sora_jax").glob("*.py")]
    modules += [path.with_suffix("").relative_to(ROOT) for path in (ROOT / "sora_jax" / "benchmarks").glob("*.py")]
    commands = [one for path in modules if hasattr(one := importlib.import_module(".".join(path.parts)), "main")]
    assert len(commands) >= 16
    own = set(FLAGS) - flags
    assert not own & {"workdir", "config", "checkpoint", "prompt", "clips", "json"}
    assert sys.argv == arguments


@pytest.mark.parametrize("command", COMMANDS)
def test_help_reads_well(run, command):
    done = run(command, "--help", fresh=command == COMMANDS[0])
    assert done.returncode == 0
    assert f"python -m sora_jax.{command} --" in done.stdout
    assert "--workdir: The folder" in done.stdout


def test_several_prompts_and_sizes_are_sampled_in_one_call(sampled):
    done, outputs = sampled
    assert done.returncode == 0, done.stderr
    assert sorted(line.split(",")[0] for line in done.stdout.splitlines()) == sorted(map(str, outputs))
    clips = [read_clip(path) for path in outputs]
    assert [clip.shape for clip, _ in clips] == [(9, 16, 24, 3), (5, 8, 16, 3), (1, 24, 8, 3)]
    assert [fps for _, fps in clips[:2]] == pytest.approx([8, 8], rel=0.05)
    assert all(clip.std() > 1 for clip, _ in clips), "not one flat colour"


def test_a_request_alone_gives_the_same_picture_and_the_same_call_the_same_bytes(run, toy_workdir, sampled, tmp_path):
    arguments = ("--prompt=green", "--size=24x8", "--frames=1", "--seed=3")
    files = [tmp_path / name for name in ("first.png", "second.png")]
    for path in files:
        done = run("sample", f"--workdir={toy_workdir}", *arguments, f"--output={path}")
        assert done.returncode == 0, done.stderr
    assert files[0].read_bytes() == files[1].read_bytes()
    shared, alone = (np.asarray(Image.open(path)).astype(int) for path in (sampled[1][2], files[0]))
    assert np.abs(shared - alone).max() <= 1


def test_without_names_files_are_called_by_their_prompts(run, toy_workdir, tmp_path):
    workdir = Path(shutil.copytree(toy_workdir, tmp_path / "toy"))
    prompts = ("--prompt=../A Red circle!", "--prompt=a red circle", "--prompt=a red circle")
    done = run(
        "sample",
        f"--workdir={workdir}",
        *prompts,
        "--frames=1",
        "--frames=5",
        "--frames=5",
        "--steps=1",
        "--solver=heun",
        "--guidance=1",
        "--fps=4",
        "--checkpoint=6",
    )
    assert done.returncode == 0, done.stderr
    names = [Path(line).name for line in done.stdout.split()]
    assert names == ["a_red_circle_seed0.png", "a_red_circle_seed0.mp4", "a_red_circle_seed0_2.mp4"]
    for line in done.stdout.split():
        assert Path(line).parent == workdir / "samples" / "prompted"
    assert len(list((workdir / "samples" / "prompted").iterdir())) == 3, "nothing else is written there"
    clip, fps = read_clip(done.stdout.split()[1])
    assert (clip.shape, fps) == ((5, 16, 16, 3), 4)


def test_a_file_of_all_tasks_is_made_once(run, toy_workdir, tmp_path):
    workdir = Path(shutil.copytree(toy_workdir, tmp_path / "toy"))
    clip = np.random.default_rng(0).integers(0, 256, size=(5, 16, 16, 3), dtype=np.uint8)
    mask = np.zeros((1, 16, 16, 3), np.uint8)
    mask[:, 8:] = 255
    for name, pixels in (("a.gif", clip), ("b.gif", clip[::-1]), ("a.png", clip[:1]), ("mask.png", mask)):
        write_clip(tmp_path / name, pixels, fps=8)
    frames = {"output": "frame_%d.png"}
    lines = [
        {"prompt": "a red circle moves right", "seconds": 0.5, "negative": "blue", "output": "text.webm"},
        {"prompt": "a red circle", "frames": 1},
        {"task": "animate", "image": "a.png", "prompt": "red", "frames": 5, "keep_pixels": True, **frames},
        {"task": "extend", "video": "a.gif", "prompt": "red", "seconds": "-0.5,+0.5", "output": "extend.gif"},
        {"task": "loop", "video": "a.gif", "prompt": "red"},
        {"task": "connect", "video": ["a.gif", "b.gif"], "prompt": ["a red circle", "a blue square"]},
        {"task": "edit", "video": "a.gif", "prompt": "green", "strength": 0.5},
        {"task": "fill", "video": "a.gif", "mask": "mask.png", "prompt": "green", "keep_pixels": True},
        {"task": "upscale", "video": "a.gif", "prompt": "red", "scale": 1.5},
    ]
    requests = tmp_path / "all.jsonl"
    requests.write_text("\n".join(map(json.dumps, lines)))
    command = ("sample", f"--workdir={workdir}", f"--requests={requests}", "--steps=1")
    done = run(*command)
    assert done.returncode == 0, done.stderr
    folder = workdir / "samples" / "all"
    told = dict(line.split(",", 1) if "," in line else (line, "") for line in done.stdout.splitlines())
    shapes = {
        "text.webm": (5, 16, 16, 3),
        "a_red_circle_seed0.png": (1, 16, 16, 3),
        "extend.gif": (13, 16, 16, 3),
        "loop_red_seed0.mp4": (9, 16, 16, 3),
        "connect_a_red_circle_seed0.mp4": (14, 16, 16, 3),
        "edit_green_seed0.mp4": (5, 16, 16, 3),
        "fill_green_seed0.mp4": (5, 16, 16, 3),
        "upscale_red_seed0.mp4": (5, 24, 24, 3),
    }
    for name, shape in shapes.items():
        assert read_clip(folder / name)[0].shape == shape, name
        assert str(folder / name) in told
    assert "seam" in told[str(folder / "loop_red_seed0.mp4")]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "frame_0.png")), clip[0])
    assert len(list(folder.glob("frame_*.png"))) == 5

    (folder / "extend.gif").unlink()
    (folder / "frame_0.png").unlink()
    lines[6]["seed"] = 9
    requests.write_text("\n".join(map(json.dumps, lines)))
    again = run(*command)
    assert again.returncode == 0, again.stderr
    remade = {Path(line.split(",")[0]).name for line in again.stdout.splitlines() if line.startswith(str(folder))}
    assert remade == {"extend.gif", "edit_green_seed9.mp4", "frame_%d.png"}
    assert "6 of 9 requests are done already" in again.stdout


def test_a_wrong_request_of_a_file_is_named_before_any_is_made(run, toy_workdir, tmp_path):
    requests = tmp_path / "wrong.jsonl"
    requests.write_text('{"prompt": "red"}\n{"prompt": "red", "size": "9x9"}')
    done = run("sample", f"--workdir={toy_workdir}", f"--requests={requests}")
    ends_in_a_sentence(done, "wrong.jsonl, line 2: height 9 is not divisible by 8")
    assert not done.stdout, "nor the one before it"
    requests.write_text('{"prompt": "red", "output": "../../a.mp4"}')
    done = run("sample", f"--workdir={toy_workdir}", f"--requests={requests}")
    ends_in_a_sentence(done, "output '../../a.mp4' must be the name of a file")


def test_what_cannot_be_written_is_told_before_the_work(run, toy_workdir, tmp_path):
    (tmp_path / "file").touch()
    autoencoder = ("--part=autoencoder", "--format=original")
    for name, arguments in (
        ("sample", [f"--workdir={toy_workdir}", "--prompt=red", f"--output={tmp_path}/file/a.mp4"]),
        ("sample", [f"--workdir={toy_workdir}", "--prompt=red", f"--output={tmp_path}/file/f_%d.png"]),
        ("inspect_data", [TOY, f"--output={tmp_path}/file/a.html"]),
        ("inspect_data", [TOY, f"--output={tmp_path}/a.html", f"--export={tmp_path}/file"]),
        ("export", [f"--workdir={toy_workdir}", *autoencoder, f"--output={tmp_path}/file"]),
    ):
        done = run(name, *arguments)
        ends_in_a_sentence(done, f"StorageError: cannot write {tmp_path}/file/", code=74)
        assert not done.stdout


def test_a_webp_is_written_too(run, toy_workdir, tmp_path):
    path = tmp_path / "a.webp"
    done = run("sample", f"--workdir={toy_workdir}", "--prompt=red", "--frames=5", "--steps=1", f"--output={path}")
    assert done.returncode == 0, done.stderr
    assert read_clip(path)[0].shape == (5, 16, 16, 3)


@pytest.mark.parametrize("name", [pytest.param("sample", marks=pytest.mark.slow), "inspect_data"])
def test_a_user_whom_the_system_does_not_know_needs_no_home(toy_workdir, tmp_path, name):
    """As in a container that was started with a number for a user."""
    unknown = "import pwd, runpy, sys; pwd.getpwuid = {}.__getitem__; sys.argv = sys.argv[1:]; "
    script = unknown + f"runpy.run_module('sora_jax.{name}', run_name='__main__', alter_sys=True)"
    arguments = ["--config=tests/toy.py", f"--output={tmp_path}/page.html", "--clips=2"]
    if name == "sample":
        arguments = [
            f"--workdir={toy_workdir}",
            "--prompt=red",
            "--frames=1",
            "--steps=1",
            f"--output={tmp_path}/a.png",
        ]
    environment = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu", "XLA_FLAGS": _compiling_quickly()}
    command = [sys.executable, "-c", script, name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert ("Could not determine home directory.): each start compiles them again" in done.stderr) == (name == "sample")
    assert len(list(tmp_path.iterdir())) == 1, "what was asked for"


def _compiling_quickly():
    return " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)


def test_metrics_are_printed_and_written(run, toy_workdir, tmp_path):
    workdir = Path(shutil.copytree(toy_workdir, tmp_path / "toy"))
    expected = json.loads((workdir / "evaluation.json").read_text())
    (workdir / "evaluation.json").unlink()
    done = run("evaluate", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "shapes: prompts 8, colour " in done.stdout
    assert "shapes, by group:" in done.stdout
    assert {row["by"] for row in expected["shapes"]["groups"]} == {"shape", "ground"}
    assert all(0 <= row["clean"] <= 1 for row in expected["shapes"]["groups"])
    with Image.open(workdir / "samples" / "evaluation" / "shapes_verdicts.png") as picture:
        assert picture.height == 8 * (2 * 16 + 4 * 16 + 4), "a row for each prompt"
    assert f"psnr {expected['autoencoder']['psnr']:.3f}" in done.stdout
    assert json.loads((workdir / "evaluation.json").read_text()) == expected
    asked = ["--checkpoint=6", "--weights=params", "--solver=dpm", "--steps=3", "--guidance=1", "--draws=2"]
    done = run("evaluate", f"--workdir={workdir}", "--part=generator", *asked)
    found = json.loads((workdir / "evaluation.json").read_text())["shapes"]
    assert (found["step"], found["weights"], found["solver"], found["prompts"]) == (6, "params", "dpm 3", 16)
    done = run("evaluate", f"--workdir={workdir}", "--part=autoencoder", "--weights=params")
    ends_in_a_sentence(done, "--weights=params are of the transformer: the autoencoder is an average")


def test_every_task_is_judged_and_shown(run, toy_workdir, tmp_path):
    workdir = Path(shutil.copytree(toy_workdir, tmp_path / "toy"))
    done = run("evaluate", f"--workdir={workdir}", "--part=tasks", "--clips=2", "--steps=1")
    assert done.returncode == 0, done.stderr
    found = json.loads((workdir / "evaluation.json").read_text())
    assert found["shapes"] == json.loads((toy_workdir / "evaluation.json").read_text())["shapes"], "the rest is kept"
    names = ("animate", "extend_forward", "extend_backward", "loop", "connect", "edit", "fill", "upscale")
    for name in names:
        assert f"task_{name}: clips {1 if name == 'connect' else 2}" in done.stdout
        assert (workdir / "samples" / "evaluation" / f"task_{name}.gif").exists()
        assert found[f"task_{name}"]["clips"] == (1 if name == "connect" else 2)
    assert (workdir / "samples" / "evaluation" / "size_longer_verdicts.png").exists()
    assert [found[f"size_{name}"]["size"] for name in ("usual", "wider", "taller", "longer")] == [
        "5x16x16",
        "5x16x24",
        "5x24x16",
        "13x16x16",
    ]


def test_the_autoencoder_alone_is_judged_on_a_folder_without_captions(run, toy_workdir, tmp_path):
    workdir = Path(shutil.copytree(toy_workdir, tmp_path / "toy"))
    folder, weights = tmp_path / "clips", tmp_path / "vgg16.safetensors"
    rng = np.random.default_rng(0)
    for name, shape in {"a.gif": (5, 16, 16), "b.gif": (5, 16, 16), "deep/c.png": (1, 19, 24)}.items():
        write_clip(folder / name, rng.integers(0, 256, size=(*shape, 3), dtype=np.uint8), fps=8.0)
    (folder / "torn.mp4").write_bytes(b"not a video")
    shapes = perceptual.shapes("vgg16")
    save_file({name: (0.1 * rng.random(shape)).astype(np.float32) for name, shape in shapes.items()}, weights)
    arguments = (f"--workdir={workdir}", "--part=autoencoder")
    done = run("evaluate", *arguments, f"--data={folder}", f"--lpips={weights}")
    assert done.returncode == 0, done.stderr
    assert "left out: torn.mp4: " in done.stderr
    found = json.loads((workdir / "evaluation_autoencoder.json").read_text())["autoencoder"]
    assert (found["clips"], found["skipped"], found["data"]) == (3, 1, str(folder))
    assert [(row["frames"], row["size"], row["clips"]) for row in found["groups"]] == [
        ("1", "16x24", 1),
        ("5", "16x16", 2),
    ]
    assert {row["clip"] for row in found["worst"]} == {"a.gif", "b.gif", "deep/c.png"}
    assert found["psnr"] == pytest.approx(np.mean([row["psnr"] for row in found["worst"]]))
    assert found["lpips"] > 0
    assert done.stdout.split()[:5] == ["frames", "size", "clips", "psnr", "psnr_resampled"]
    with Image.open(workdir / "samples" / "evaluation" / "worst_reconstructions_data.png") as picture:
        assert picture.height > 7 * 96, "three frames of each gif and the image"
    assert (workdir / "evaluation.json").read_bytes() == (toy_workdir / "evaluation.json").read_bytes()

    done = run("evaluate", *arguments, "--clips=2")
    assert done.returncode == 0, done.stderr
    before, after = (json.loads((path / "evaluation.json").read_text()) for path in (toy_workdir, workdir))
    assert (before["autoencoder"]["clips"], after["autoencoder"]["clips"]) == (8, 2)
    assert before["shapes"] == after["shapes"], "what was not asked for stays"


def test_a_folder_is_prepared_and_bad_clips_are_named(run, tmp_path):
    folder, workdir = tmp_path / "clips", tmp_path / "run"
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, size=(5, 16, 16 + 8 * (number % 2), 3), dtype=np.uint8)
        write_clip(folder / f"{number}.gif", pixels, fps=8.0)
        (folder / f"{number}.txt").write_text(f"clip number {number}")
    (folder / "torn.mp4").write_bytes(b"not a video")
    (folder / "torn.txt").write_text("a torn clip")
    write_clip(folder / "silent.gif", pixels, fps=8.0)
    arguments = (
        TOY,
        "--config.data.source=folder",
        f"--config.data.path={folder}",
        f"--workdir={workdir}",
        "--config.stages.autoencoder.steps=2",
        "--config.stages.autoencoder.crops.buckets=((5,16,16,8),)",
        "--config.log.samples_per_stage=0",
    )
    done = run("prepare", *arguments)
    assert done.returncode == 0, done.stderr
    assert "written 8, already done 0, skipped 1" in done.stdout
    assert "torn.mp4" in done.stderr
    assert "1 files without a caption are left out: silent.gif" in done.stderr
    (line,) = (workdir / "prepared" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["source_id"] == "torn.mp4"
    assert json.loads((workdir / "run.json").read_text())["stages"].keys() == {"autoencoder", "prepare"}
    assert "torn.mp4" in (workdir / "report.html").read_text()
    done = run("sample", f"--workdir={workdir}", "--prompt=red")
    ends_in_a_sentence(done, "has no checkpoint of a transformer yet: run main until one is written")


def ends_in_a_sentence(done, said, *, code=2):
    """One line, no traceback, nothing done."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert said in lines[0]
    assert "Traceback" not in done.stderr
    assert "stage 1" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([TOY, "--config.stages.videos.stepz=1"], 'no key stepz; Did you mean "steps" instead of "stepz"?'),
        (["--config.stages.videos.stepz=1"], 'no key stepz; Did you mean "steps" instead of "stepz"?'),
        ([TOY, "--config.stages.videos.steps=many"], "--config.stages.videos.steps=many: invalid literal for int()"),
        ([TOY, "--config.stages.videos.steps=0"], "config.stages.videos: steps is 0: it must be at least 1"),
        ([TOY, "--config.precision=float16"], "config.precision must be one of 'float32', 'bfloat16' or None"),
        ([TOY, "--config.sampling.size=(16,20)"], "width 20 is not divisible by 8"),
        ([TOY, "--config.mesh.fsdp=3"], "does not fit 1 devices"),
        ([TOY, "--config.data.source=folder"], "needs a folder: pass --config.data.path=DIR"),
        ([TOY, "--config.data.source=folder", "--config.data.path=/no/such/place"], "/no/such/place does not exist"),
        (
            [TOY, "--config.data.source=webdataset", "--config.data.path=/no/{0..3}.tar"],
            "no tar file matches /no/{0..3}.tar",
        ),
        ([TOY, "--stepz=1"], "Unknown command line flag 'stepz'"),
        ([TOY, "videos"], "unknown argument 'videos': flags start with --"),
        (["--config=configs/nothing.py"], "No such file or directory: 'configs/nothing.py'"),
    ],
)
def test_a_mistake_before_a_run_ends_in_a_sentence(run, tmp_path, arguments, said):
    ends_in_a_sentence(run("main", *arguments, f"--workdir={tmp_path / 'run'}"), said)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (None, "", "holds 0 files but no video or image"),
        ("a.gif", "", "none of the 1 media files in"),
        ("captions.jsonl", '{"file": "a.gif"}', "captions.jsonl"),
    ],
)
def test_a_folder_without_clips_or_captions_says_so(run, tmp_path, name, content, said):
    folder = tmp_path / "clips"
    folder.mkdir()
    if name:
        write_clip(folder / "a.gif", np.zeros((2, 16, 16, 3), np.uint8), fps=8.0)
    if content:
        (folder / name).write_text(content)
    done = run("prepare", TOY, "--config.data.source=folder", f"--config.data.path={folder}", f"--workdir={tmp_path}/r")
    assert said in done.stderr, done.stderr
    ends_in_a_sentence(done, "UserError: ")


def test_a_workdir_of_another_config_is_refused_with_the_keys(run, toy_workdir):
    config = (toy_workdir / "config.json").read_bytes()
    done = run("main", TOY, f"--workdir={toy_workdir}", "--config.seed=1", "--config.stages.videos.steps=99")
    ends_in_a_sentence(done, "belongs to another config (seed: 0 -> 1; stages.videos.steps: 8 -> 99)")
    assert (toy_workdir / "config.json").read_bytes() == config


def test_the_refusal_of_more_steps_names_flags_that_go_on_with_what_is_trained(run, toy_workdir, tmp_path):
    first = Path(shutil.copytree(toy_workdir, tmp_path / "first run"))
    asked = (TOY, "--config.stages.videos.steps=9", "--config.log.samples_per_stage=0")
    done = run("main", *asked, f"--workdir={first}")
    said = "(stages.videos.steps: 8 -> 9): restore the old values, or give another --workdir, to which"
    ends_in_a_sentence(done, said)
    flags = shlex.split(done.stderr.partition("to which ")[2].partition(" gives what is trained here")[0])
    second = tmp_path / "second"
    done = run("main", *asked, *flags, f"--workdir={second}")
    assert done.returncode == 0, done.stderr
    assert f"the autoencoder is that of {first}, step 8 of autoencoder" in done.stderr
    assert "starting from the averaged weights of step 8" in done.stderr
    facts = json.loads((second / "run.json").read_text())
    assert (facts["stages"].keys(), facts["stages"]["videos"]["steps"]) == ({"prepare", "videos"}, 9)
    before, after = (json.loads((path / "latents.json").read_text()) for path in (first, second))
    assert (before["mean"], before["scale"]) == (after["mean"], after["scale"])
    psnr = [json.loads((path / "evaluation.json").read_text())["autoencoder"]["psnr"] for path in (first, second)]
    assert psnr[0] == psnr[1]
    shutil.rmtree(first)
    done = run("sample", f"--workdir={second}", "--prompt=red", "--frames=1", "--steps=1")
    assert done.returncode == 0, done.stderr
    done = run("main", *asked, *flags, f"--workdir={second}", "--config.log.every_steps=1")
    assert "is done: nothing is left to do" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to sample: pass --prompt="),
        (["--prompt=\t \n"], "is empty: describe the video in a few words"),
        (["--prompt=" + "word " * 500], "the prompt has 501 tokens and this model takes 24: shorten it"),
        (
            ["--prompt=red", "--size=25x40"],
            "height 25 is not divisible by 8 = 4 (autoencoder) x 2 (patch); nearest: 24",
        ),
        (["--prompt=red", "--frames=five"], "--frames=five"),
        (["--prompt=red", "--output=a.avi"], "the ending must be one of .mp4, .webm, .gif, .webp, .png"),
        (["--prompt=red", "--checkpoint=7"], "there is no checkpoint of step 7 in"),
        (["--prompt=red", "--checkpoint=newest"], "--checkpoint='newest' is neither a step nor latest"),
        (["--prompt=red", "--solver=magic"], "value should be one of <euler|heun|dpm|unipc|stochastic>"),
        (["--prompt=red", "--guidance=-1"], "guidance -1 is negative"),
        (["--prompt=red", "--task=animate"], "0 files to --image for task animate, which takes 1: pass --image=FILE"),
        (["--prompt=red", "--task=extend", "--video=no.mp4"], "no.mp4 does not exist"),
        (["--prompt=red", "--seconds=100"], "longer than the 60 s of sampling.max_seconds"),
        (["--requests=no.jsonl"], "the requests no.jsonl cannot be read"),
    ],
)
def test_a_request_that_cannot_be_ends_in_a_sentence(run, toy_workdir, arguments, said):
    ends_in_a_sentence(run("sample", f"--workdir={toy_workdir}", *arguments), said)


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("main", "--process_id=0", "--process_index"),
        ("evaluate", "--evaluate=tasks", "--part"),
        ("plan", "--what=sample", "--part"),
        ("replay", "--step=3", "--checkpoint"),
    ],
)
def test_a_flag_that_was_called_otherwise_is_told(run, command, old, new):
    ends_in_a_sentence(run(command, old), f"{old.partition('=')[0]} is now {new}: pass that")


@pytest.mark.parametrize(("command", "arguments"), [("sample", ["--prompt=red"]), ("evaluate", [])])
def test_a_workdir_without_a_run_says_so(run, tmp_path, command, arguments):
    done = run(command, f"--workdir={tmp_path / 'typo'}", *arguments)
    ends_in_a_sentence(done, "typo holds no run (config.json is missing): train one, or correct --workdir")
    assert not (tmp_path / "typo").exists()


def test_a_checkpoint_that_is_not_there_is_told_by_evaluate(run, toy_workdir):
    ends_in_a_sentence(run("evaluate", f"--workdir={toy_workdir}", "--checkpoint=77"), "steps found: [6, 8]")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--part=decoder"],
            "<autoencoder|heldout|generator|tasks|distribution|probes|refine|control|expand|captions|all>",
        ),
        (["--data=tests"], "pass --part=autoencoder, not all"),
        (
            ["--part=autoencoder", "--data=no/such"],
            "--data=no/such is not a folder: give one with videos or images",
        ),
        (["--clips=0"], "--clips=0"),
        (["--lpips=no.safetensors"], "no.safetensors does not exist; make it as docs/evaluation.md says"),
        (["--video_features=README.md"], "README.md is not a whole safetensors file"),
    ],
)
def test_an_evaluation_that_cannot_be_ends_in_a_sentence(run, toy_workdir, arguments, said):
    ends_in_a_sentence(run("evaluate", f"--workdir={toy_workdir}", *arguments), said)


def test_an_output_that_cannot_be_written_is_a_fault_of_storage(run, toy_workdir, tmp_path):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "a.png"
    done = run("sample", f"--workdir={toy_workdir}", "--prompt=red", "--frames=1", f"--output={output}")
    ends_in_a_sentence(done, "StorageError: cannot write", code=74)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"], "nothing is left behind"


def test_a_signal_from_outside_saves_and_ends_with_its_code(tmp_path):
    """Run for real, stopped while it trains; the lock keeps a second run out meanwhile."""
    arguments = [TOY, f"--workdir={tmp_path}", "--config.stages.autoencoder.steps=100000", "--config.log.every_steps=1"]
    arguments += ["--config.log.samples_per_stage=0", "--config.stages.autoencoder.crops.buckets=((5,16,16,8),)"]
    command = [sys.executable, "-m", "sora_jax.main", *arguments]
    how = {"cwd": Path(__file__).parents[1], "env": processes.environment(devices=1), "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how) as process:
        metrics = tmp_path / "metrics.jsonl"
        until = time.monotonic() + 300
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.1)
        second = subprocess.run(command, capture_output=True, timeout=300, **how)
        ends_in_a_sentence(second, f"another run is writing to {tmp_path}: wait for it, or give another --workdir")
        assert not (tmp_path / "failure.json").exists(), "only the run that holds the folder tells there how it ended"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 85, said
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert line.startswith("Preempted: stopped by SIGTERM: step ")
    step = int(line.split("step ")[1].split()[0])
    assert (tmp_path / "checkpoints" / "autoencoder" / str(step) / "manifest.json").exists()
    record = json.loads((tmp_path / "failure.json").read_text())
    assert (record["code"], record["stage"], record["step"]) == (85, "autoencoder", step)
    assert f"Preempted: {record['cause']}" == line


def test_a_heap_is_inspected_before_anything_is_trained(run, tmp_path):
    folder = tmp_path / "clips"
    for number in range(6):
        write_clip(folder / f"{number}.gif", np.full((5, 16, 16, 3), 40 * number, np.uint8), fps=8.0)
        (folder / f"{number}.txt").write_text("a grey square")
    (folder / "5.gif").write_bytes(b"GIF89a and no more")
    page = tmp_path / "page.html"
    config = [TOY, "--config.data.source=folder", f"--config.data.path={folder}"]
    done = run("inspect_data", *config, f"--output={page}")
    assert done.returncode == 0, done.stderr
    assert "6 clips, 6 looked at: 5 kept, 1 left out" in done.stdout
    assert "1 left out: " in done.stdout
    assert "fill 0.8" in done.stdout, "four clips of 8 tokens in a row of 36"
    assert "5.gif" in page.read_text()
    table = tmp_path / "new.jsonl"
    rows = [{"file": "0.gif", "captions": ["a black square stands still", "black"]}, {"file": "a.gif", "caption": "no"}]
    table.write_text("\n".join(map(json.dumps, rows)))
    done = run("inspect_data", *config, f"--output={page}", f"--captions={table}")
    assert "names in --captions that are of no clip: 1, such as a.gif" in done.stdout, done.stderr
    assert "clips without a caption 0.0% 80.0% captions 5 2" in " ".join(done.stdout.split())
    assert "  after begin: 'a black square' 50%, 'black' 50%\n" in done.stdout
    assert "  0.gif\n    before  a grey square\n    after   a black square stands still\n" in done.stdout
    assert "<td>after</td><td>a black square stands still</td>" in page.read_text()
    done = run("inspect_data", *config, "--config.data.curation.min_brightness=100.0", f"--output={page}")
    assert "3 clips, 3 looked at: 2 kept, 4 left out" in done.stdout, done.stdout
    assert "brightness 80.0 of 255 is under min_brightness = 100" in page.read_text()
    ends_in_a_sentence(run("inspect_data", *config, "--output=page.txt"), "must end in .html, not '.txt'")
    uncut = run("inspect_data", TOY, f"--output={page}", f"--export={tmp_path}/windows")
    ends_in_a_sentence(uncut, "--export writes what curation cuts, and data.curation is off")
    assert not uncut.stdout
