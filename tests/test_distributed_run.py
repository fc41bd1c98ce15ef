"""Two processes with four devices each run as one with eight does, and each goes on where the other stopped."""

import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from sora_jax.checkpoints import manifest
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment import run
from sora_jax.train.metrics import read_metrics
from tests import processes, toy_several

CONFIG = "tests/toy_several.py"
HEARTBEAT = 20  # where a process is killed; else the default, as all may stand still for seconds where much is run
# Pieces of the lines of the library that connects the processes: its threads write through one another.
GLOO = re.compile(r"\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of connected peer ranks is : |\d+")
RECORDS = ("failure.json", "failure-1.json")
SECONDS = 900  # of a run that takes half a minute where nobody else is at work


@pytest.fixture(scope="module")
def taken_over(toy_workdir):
    """What a run is told that does not train the autoencoder, but has that of another."""
    return {"run": ("prepare", "videos"), "autoencoder.start_from": str(toy_workdir)}


@pytest.fixture(scope="module")
def alone(taken_over, tmp_path_factory):
    """The workdir of a whole run of one process."""
    workdir, config = tmp_path_factory.mktemp("alone") / "run", toy_several.get_config()
    config.update_from_flattened_dict(taken_over)
    run.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def together(alone, taken_over, tmp_path_factory):
    """A run whose last stage two processes take over from its middle; what they said."""
    workdir = Path(shutil.copytree(alone, tmp_path_factory.mktemp("together") / "run"))
    for name in ("checkpoints/videos/6", "samples/videos", "samples/evaluation"):
        shutil.rmtree(workdir / name)
    for name in ("evaluation.json", "report.html"):
        (workdir / name).unlink()
    forget(workdir, "videos")
    return workdir, processes.wait(start(workdir, **taken_over), seconds=SECONDS)


@pytest.fixture(scope="module")
def prepared(alone, taken_over, tmp_path_factory):
    """The workdir of a run whose clips two processes prepare, and no more; what they said."""
    workdir = tmp_path_factory.mktemp("prepared") / "run"
    shutil.copytree(alone, workdir, ignore=shutil.ignore_patterns("prepared", "videos", "samples", "evaluation.json"))
    forget(workdir, "prepare", "videos")
    return workdir, processes.wait(start(workdir, "--until=prepare", **taken_over), seconds=SECONDS)


def forget(workdir, *stages):
    """Makes a run one that has not done these stages yet, nor the evaluation."""
    facts = json.loads((workdir / "run.json").read_text())
    del facts["evaluated"]
    for name in stages:
        del facts["stages"][name]
    (workdir / "run.json").write_text(json.dumps(facts))


def start(workdir, *flags, **keys):
    told = (f"--config.{key}={value}" for key, value in keys.items())
    return processes.start(f"--config={CONFIG}", f"--workdir={workdir}", *told, *flags)


def losses(workdir, stage):
    return {line["step"]: line["loss"] for line in read_metrics(workdir) if line["stage"] == stage}


def test_both_end_well_and_one_speaks(together):
    ends = together[1]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert "going on from step 3" in ends[0][2]
    for texts in ends[1][1:]:
        told = GLOO.sub("", texts).splitlines()
        assert not [line for line in told if line.strip() and "WARNING" not in line], texts


def test_two_processes_have_the_losses_of_one(alone, together):
    expected, got = losses(alone, "videos"), losses(together[0], "videos")
    assert list(got) == list(expected) == [1, 2, 3, 4, 5, 6]
    assert got == pytest.approx(expected, rel=1e-4)


def test_samples_are_of_four_captions_of_the_run_and_all_processes_take_the_same(alone, together):
    """No prompts are configured."""
    said, again = (
        json.loads((one / "samples" / "videos" / "prompts.json").read_text()) for one in (alone, together[0])
    )
    captions = {text for number in range(48) for text in PreparedSet(alone / "prepared").raw(number).captions}
    assert len(set(said.values())) == 4
    assert set(said.values()) <= captions
    assert again == said
    assert len(list((together[0] / "samples" / "videos").glob("*/prompt_*.gif"))) == 4


def test_each_process_writes_its_part_of_a_checkpoint_which_the_manifest_covers(together):
    step = together[0] / "checkpoints" / "videos" / "6"
    assert manifest.faults(epath.Path(step)) == []
    names = json.loads((step / manifest.MANIFEST).read_text())["sha256"]
    for process in range(2):
        assert any(name.startswith(f"state/ocdbt.process_{process}/") for name in names)
    assert not list(step.glob("digests*"))


def test_two_processes_prepare_as_one_does(alone, prepared):
    workdir, ends = prepared
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert "stage 1 of 1: prepare, " in ends[0][1]
    assert "\n  written 48, already done 0, skipped 0, " in ends[0][1], "the clips of both"
    shards = sorted(path.name for path in (workdir / "prepared").glob("*.arrayrecord"))
    assert shards == [f"part00{part}of002-00000{number}.arrayrecord" for part, number in ((0, 0), (0, 1), (1, 0))]
    one, two = PreparedSet(alone / "prepared"), PreparedSet(workdir / "prepared")
    assert two.clips_fingerprint() == one.clips_fingerprint()
    for index in range(len(one)):
        expected, got = one.raw(index), two.raw(index)
        assert got.captions == expected.captions
        # Other batches on a device, other rounding: where that is of a number halfway between two of the numbers that
        # shards hold (bfloat16), it is stored as the other one.
        np.testing.assert_allclose(got.latent_THWC, expected.latent_THWC, rtol=2**-7, atol=1e-4)
        assert np.mean(got.latent_THWC != expected.latent_THWC) < 0.02
    assert json.loads((workdir / "run.json").read_text())["stages"]["prepare"]["written"] == 48


def test_two_processes_judge_as_one_does(alone, together):
    workdir = together[0]
    scores = [json.loads((path / "evaluation.json").read_text()) for path in (alone, workdir)]
    assert scores[1]["shapes"].keys() == scores[0]["shapes"].keys()
    for name in ("psnr", "ssim", "latent_std"):
        assert scores[1]["autoencoder"][name] == pytest.approx(scores[0]["autoencoder"][name], rel=1e-3)
    for name in ("samples/videos/000006/prompt_00.gif", "samples/evaluation/shapes.gif", "report.html"):
        assert (workdir / name).stat().st_size > 500
    facts = json.loads((workdir / "run.json").read_text())
    assert facts["devices"].startswith("8 x ")
    assert facts["evaluated"] is True


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_one_process_goes_on(tmp_path_factory, tmp_path):
    """The autoencoder, begun by two processes and finished by one."""
    running = start(tmp_path, "--until=autoencoder")
    await_lines(tmp_path / "metrics.jsonl", running, count=1)
    running[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    ends = processes.wait(running, seconds=SECONDS)
    assert [code for code, _, _ in ends] == [85, 85], ends
    assert time.monotonic() - began < 120
    told = {errors.splitlines()[-1] for _, _, errors in ends}
    assert len(told) == 1, told
    (line,) = told
    assert line.startswith("Preempted: stopped by SIGTERM: s")
    saved = {path.name for path in (tmp_path / "checkpoints" / "autoencoder").iterdir() if path.name.isdecimal()}
    if "step " in line:
        assert line.split("step ")[1].split()[0] in saved
    for name in RECORDS:
        record = json.loads((tmp_path / name).read_text())
        assert (record["code"], record["stage"]) == (85, "autoencoder")
    alone = tmp_path_factory.mktemp("alone")
    for workdir in (tmp_path, alone):
        run.run(toy_several.get_config(), workdir, until="autoencoder")
    assert losses(tmp_path, "autoencoder") == pytest.approx(losses(alone, "autoencoder"), rel=1e-4)
    assert len(losses(tmp_path, "autoencoder")) == 6
    assert not list(tmp_path.glob("failure*")), "it ended well, and there is no other process any more"


def await_lines(path, running, *, count):
    until = time.monotonic() + SECONDS
    while not (path.exists() and path.read_text().count("\n") >= count):
        assert all(process.poll() is None for process in running), [p.communicate() for p in running if p.poll()]
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (
            ["--process_count=2"],
            2,
            "UserError: several processes need all of --coordinator (JAX_COORDINATOR_ADDRESS), ",
        ),
        (["--distributed"], 2, "UserError: --distributed found no TPU pod, Slurm or MPI job around this process"),
        (
            ["--coordinator=127.0.0.1:{port}", "--process_count=3", "--process_index=0", "--join_timeout=1"],
            75,
            "PeerLost: 2 of 3 processes did not come to port {port} within 1 s: process 1, 2; start them",
        ),
        (
            ["--coordinator=127.0.0.1:{port}", "--process_count=2", "--process_index=1", "--join_timeout=1"],
            75,
            "PeerLost: process 0 did not answer process 1 at 127.0.0.1:{port} within 1 s",
        ),
    ],
)
def test_processes_that_cannot_meet_end_in_a_sentence(python, tmp_path, flags, code, said):
    port = processes.free_port()
    done = python(
        "-m",
        "sora_jax.main",
        f"--config={CONFIG}",
        f"--workdir={tmp_path / 'run'}",
        *(flag.format(port=port) for flag in flags),
    )
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(said.format(port=port))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_survivor_of_a_run_ends_in_time_and_the_same_command_goes_on(tmp_path, victim):
    long = "--config.stages.autoencoder.steps=400"
    heartbeat = f"--heartbeat={HEARTBEAT}"
    running = start(tmp_path, "--until=autoencoder", heartbeat, long)
    await_lines(tmp_path / "metrics.jsonl", running, count=8)
    running[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    ends = processes.wait(running, seconds=SECONDS)
    assert time.monotonic() - began < HEARTBEAT + 5
    assert ends[victim][0] == -signal.SIGKILL
    code, _, errors = ends[1 - victim]
    assert code == 75, errors
    assert errors.splitlines()[-1].startswith("PeerLost: process ")
    assert [(tmp_path / name).exists() for name in RECORDS] == [victim == 1, victim == 0]
    record = json.loads((tmp_path / RECORDS[1 - victim]).read_text())
    assert (record["code"], record["kind"], record["stage"]) == (75, "PeerLost", "autoencoder")
    assert record["step"] >= 8
    again = start(tmp_path, "--until=autoencoder", heartbeat, long)
    await_lines(tmp_path / "metrics.jsonl", again, count=14)
    again[victim].send_signal(signal.SIGTERM)
    ends = processes.wait(again, seconds=SECONDS)
    assert [code for code, _, _ in ends] == [85, 85], ends
    assert "autoencoder: going on from step " in ends[0][2]


@pytest.mark.slow
def test_the_base_config_runs_as_two_processes(tmp_path):
    """Its own sizes, short."""
    short = [f"--config.stages.{stage}.steps=4" for stage in ("autoencoder", "images", "videos")]
    short += ["--config.shapes.num_clips=256", "--config.log.samples_per_stage=1", "--config.evaluation.prompts=8"]
    short += ["--config.evaluation.clips=8", "--config.sampling.steps=2", "--config.stages.prepare.clips_per_shard=64"]
    ends = processes.wait(
        processes.start("--config=configs/base.py", f"--workdir={tmp_path}", *short), seconds=4 * SECONDS
    )
    assert [code for code, _, _ in ends] == [0, 0], ends
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["stages"].keys() == {"autoencoder", "prepare", "images", "videos"}
    assert facts["evaluated"] is True
    assert facts["devices"].startswith("8 x ")
    assert (tmp_path / "report.html").exists()


def test_a_rehearsal_on_this_machine_says_what_went_wrong(tmp_path):
    """`launch/local.sh` as a user calls it: the code of the mistake is its own."""
    wrong = f"--config.stages.videos.steps=0 --workdir={tmp_path / 'run'}"
    script = processes.start_shell(f"PYTHON={sys.executable} launch/local.sh 2 {CONFIG} {wrong}")
    ((code, _, errors),) = processes.wait([script], seconds=SECONDS)
    assert code == 2, errors
    assert "steps is 0: it must be at least 1" in errors
    assert "[1] UserError: " in errors
