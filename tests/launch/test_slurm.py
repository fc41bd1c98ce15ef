"""The Slurm launcher on a Slurm of two nodes, both this machine: to the end, by way of a signal and the queue."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import environment, free_port

ROOT = Path(__file__).parents[2]
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
SECONDS = 1800
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1
PartitionName=all Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing := [name for name in NEEDED if shutil.which(name) is None]),
        reason=f"Slurm is not installed here ({', '.join(missing)})",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd runs jobs only for root"),
]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A controller and two nodes, started by hand; returns their folder."""
    folder = tmp_path / "slurm"
    for name in ("munge", "state", "spool-n0", "spool-n1"):
        (folder / name).mkdir(mode=0o755, parents=True)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "slurm.conf").write_text(
        CONF.format(
            folder=folder,
            host=socket.gethostname(),
            user="root",
            controller=free_port(),
            first=free_port(),
            second=free_port(),
        )
    )
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    munge = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "log", "pid", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge/socket", *munge],
        ["slurmctld", "-D", "-c"],
        *(["slurmd", "-D", "-c", "-N", node] for node in ("n0", "n1")),
    ]
    daemons = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("ab")
            daemons.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))
            time.sleep(1)
        until = time.monotonic() + 60
        while "idle" not in (said := ask("sinfo", "--noheader", "--format=%T %D")) or "2" not in said:
            assert time.monotonic() < until, said + "".join(path.read_text() for path in folder.glob("*.log"))
            time.sleep(0.5)
        yield folder
    finally:
        ask("scancel", "--signal=KILL", "--full", "--user=root")
        ask("scancel", "--user=root")
        time.sleep(2)  # for the tasks to end
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()


def ask(*command):
    return subprocess.run(command, capture_output=True, text=True, env=job_environment()).stdout


def job_environment():
    return {**environment(), "SLURM_CONF": os.environ["SLURM_CONF"], "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}


def state(job):
    return dict(field.partition("=")[::2] for field in ask("scontrol", "show", "job", "--oneliner", job).split())


def until(folder, job, done):
    """Returns the state of the job once `done` says so."""
    end = time.monotonic() + SECONDS
    while not done(found := state(job)):
        assert time.monotonic() < end, found
        assert found.get("JobState") not in ("FAILED", "CANCELLED", "TIMEOUT"), (folder / "job.log").read_text()
        time.sleep(0.5)
    return found


def submit(folder, *flags):
    command = ["sbatch", "--parsable", "--nodes=2", f"--output={folder}/job.log"]
    command += ["launch/slurm/train.sbatch", "--config=tests/toy_several.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=job_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_job_of_two_nodes_is_stopped_queued_again_and_ends(slurm, tmp_path):
    workdir = tmp_path / "run"
    job = submit(slurm, f"--workdir={workdir}")
    lines = workdir / "metrics.jsonl"
    until(slurm, job, lambda _: lines.exists() and lines.read_text().count("\n") >= 2)
    subprocess.run(["scancel", "--signal=TERM", job], check=True, env=job_environment())
    until(slurm, job, lambda found: found["Restarts"] == "1" and found["JobState"] != "COMPLETING")
    # A job that is queued again is left for two minutes, unless it is told otherwise while it waits.
    ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    found = until(slurm, job, lambda found: found["JobState"] == "COMPLETED")
    assert found["ExitCode"] == "0:0"
    said = (slurm / "job.log").read_text()
    assert "Preempted: stopped by SIGTERM: " in said
    assert "ended with code 85: queued again, to go on from the last checkpoint" in said
    assert said.rstrip().endswith("done")
    facts = json.loads((workdir / "run.json").read_text())
    assert facts["stages"].keys() == {"autoencoder", "prepare", "videos"}
    assert facts["devices"].startswith("8 x ")
    assert (workdir / "report.html").exists()


def test_a_mistake_is_not_queued_again_and_keeps_its_code(slurm, tmp_path):
    job = submit(slurm, f"--workdir={tmp_path / 'run'}", "--config.stages.videos.steps=0")
    end = time.monotonic() + SECONDS
    while (found := state(job))["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
        assert time.monotonic() < end
        time.sleep(0.5)
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "2:0", "0")
    assert "steps is 0: it must be at least 1" in (slurm / "job.log").read_text()
