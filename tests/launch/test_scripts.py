"""The scripts of `launch/`: sound shell, and help that reads well."""

import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = ("local.sh", "tpu/queued.sh", "slurm/train.sbatch")
# What each command of the launcher of TPUs would do; `STATE` is what there is of the queued resource.
GCLOUD = """#!/usr/bin/env bash
case "$*" in *describe*) cat "$STATE"; exit 0 ;; *create*) echo ACTIVE >"$STATE" ;; esac
printf '%s\\n' "gcloud $*" >>"$CALLS"
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_shell_is_sound(script):
    done = subprocess.run(["shellcheck", LAUNCH / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "set -euo pipefail" in (LAUNCH / script).read_text()


def test_a_fault_would_be_found(tmp_path):
    script = tmp_path / "a.sh"
    script.write_text("#!/usr/bin/env bash\nrm -rf $1\n")
    assert "SC2086" in subprocess.run(["shellcheck", script], capture_output=True, text=True).stdout


@pytest.mark.parametrize("script", ["local.sh", "tpu/queued.sh"])
def test_help_is_given_when_asked_for_and_when_nothing_is_said(script):
    asked = subprocess.run([LAUNCH / script, "--help"], capture_output=True, text=True)
    assert asked.returncode == 0
    assert asked.stdout.startswith(f"launch/{script} ")
    assert "Environment" in asked.stdout
    assert subprocess.run([LAUNCH / script], capture_output=True, text=True).returncode == 2


def test_a_number_of_processes_that_is_none_is_told():
    done = subprocess.run([LAUNCH / "local.sh", "two", "configs/base.py"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "COUNT is 'two': give a number of processes; see --help\n")


@pytest.mark.parametrize(
    ("before", "steps"),
    [
        ("", ["create", "scp", "ssh", "ssh"]),
        ("ACTIVE", ["scp", "ssh", "ssh"]),
        ("SUSPENDED", ["delete", "create", "scp", "ssh", "ssh"]),
    ],
)
def test_a_slice_is_asked_for_once_and_every_worker_gets_the_same_command(tmp_path, before, steps):
    """With a stand-in for gcloud that writes down what it is asked."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "state").write_text(before)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "STATE": str(tmp_path / "state"),
        "CALLS": str(tmp_path / "calls"),
        "OPTIONS": "--spot",
        "SETUP": "mount /runs",
    }
    command = [LAUNCH / "tpu" / "queued.sh", "--workdir=/runs/a b", "--config=configs/base.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "calls").read_text()
    calls = [line for line in text.splitlines() if line.startswith("gcloud ")]
    assert [next(step for step in ("delete", "create", "scp", "ssh") if f" {step} " in call) for call in calls] == steps
    if "create" in steps:
        assert "--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot" in text
    assert "\nmount /runs\n" in text
    assert calls[-1].endswith(r"-m sora_jax.main --distributed --workdir=/runs/a\ b --config=configs/base.py")
    assert calls[-1].count("--worker=all") == 1
