"""The scripts of `launch/`: sound shell, and help that reads well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = ("local.sh", "tpu/queued.sh", "slurm/train.sbatch")
# What each command of the launcher of TPUs would do; `STATE` has what there is of the queued resource, a line for each
# time that it is asked for, the last for all that follow.
GCLOUD = """#!/usr/bin/env bash
case "$*" in
  *describe*) head -n 1 "$STATE" && { [[ $(wc -l <"$STATE") -le 1 ]] || sed -i 1d "$STATE"; } && exit ;;
  *create*) echo ACTIVE >"$STATE" ;;
esac
printf '%s\\n' "gcloud $*" >>"$CALLS"
"""


# Each process of a run ends well, but the second of the first start.
PYTHON = """#!/usr/bin/env bash
[[ $* == *sora_jax.main* ]] || exec {python} "$@"
[[ $* == *process_index=1* && ! -f $FOLDER/killed ]] || exit 0
touch "$FOLDER/killed" && kill -KILL $$
"""
# Slurm of one node whose task ends with the next of the codes in a file; "+" makes a shard before.
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in "show hostnames") echo n0 ;; "show node") echo NodeName=n0 NodeAddr=10.0.0.7 A=b ;; *) echo "$*" ;; esac
"""
SRUN = """#!/usr/bin/env bash
read -ra codes <codes
echo "${codes[@]:1}" >codes
[[ ${codes[0]} != +* ]] || { mkdir -p run/prepared && touch "run/prepared/${#codes[@]}.arrayrecord"; }
exit "${codes[0]#+}"
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
        ("DELETING\n\n", ["create", "scp", "ssh", "ssh"]),
        ("PROVISIONING\nPROVISIONING\nACTIVE\n", ["scp", "ssh", "ssh"]),
        ("PROVISIONING\nSUSPENDING\nSUSPENDED\n", ["delete", "create", "scp", "ssh", "ssh"]),
        ("PROVISIONING\nSUSPENDED\n", ["delete", "create", "scp", "ssh", "ssh"]),
    ],
)
def test_a_slice_is_asked_for_once_and_every_worker_gets_the_same_command(tmp_path, before, steps):
    """With a stand-in for gcloud that writes down what it is asked."""
    for name, text in (("gcloud", GCLOUD), ("sleep", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
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
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "calls").read_text()
    calls = [line for line in text.splitlines() if line.startswith("gcloud ")]
    assert [next(step for step in ("delete", "create", "scp", "ssh") if f" {step} " in call) for call in calls] == steps
    if "create" in steps:
        assert "--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot" in text
    assert "\nmount /runs\n" in text
    assert calls[-1].endswith(r"-m sora_jax.main --distributed --workdir=/runs/a\ b --config=configs/base.py")
    assert calls[-1].count("--worker=all") == 1


@pytest.mark.parametrize(("error", "told"), [("NOT_FOUND: no such resource", False), ("you are not logged in", True)])
def test_what_gcloud_says_against_a_question_is_told(tmp_path, error, told):
    (tmp_path / "gcloud").write_text(f"#!/bin/sh\necho '{error}' >&2\nexit 1\n")
    (tmp_path / "gcloud").chmod(0o755)
    command = [LAUNCH / "tpu" / "queued.sh", "--workdir=/runs/a"]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    # Once by what is asked first, where that is told, and once by the command that then fails.
    assert (done.returncode, done.stderr.count(error)) == (1, 1 + told)


@pytest.mark.parametrize(
    ("flags", "codes", "ends", "last"),
    [
        (["--workdir=run"], "85 139 0", [0, 0, 0], "done"),
        (["--workdir=run"], "75 182", [0, 2], ""),
        (
            ["--workdir=run"],
            "75 75 75 75",
            [0, 0, 75],
            "ended with code 75, and 2 starts in a row brought nothing new: look into the log",
        ),
        *(
            (flags, "75 +75 75 +75 0", [0, 0, 0, 0, 0], "done")
            for flags in (["--workdir=run"], ["--workdir", "run"], ["--workdir=~/run"], ["--workdir", "~/run"])
        ),
    ],
)
def test_a_job_is_queued_again_while_that_helps(tmp_path, flags, codes, ends, last):
    """With stand-ins for Slurm; tests/launch/test_slurm.py has a real one."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "codes").write_text(codes)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n0", "PATIENCE": "2", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    job["HOME"] = str(tmp_path)
    command = [LAUNCH / "slurm" / "train.sbatch", "--config=a.py", *flags]
    for end in ends:
        done = subprocess.run(["bash", *command], capture_output=True, text=True, env=job, cwd=tmp_path)
        assert done.returncode == end, done.stderr
        queued = "requeue 7\n" in done.stdout
        assert queued == (end == 0 and "done" not in done.stdout)
    assert (done.stdout + done.stderr).rstrip().endswith(last)
    assert (tmp_path / "slurm-7.state").exists() == (last != "done")


def test_a_rehearsal_starts_again_when_a_process_was_killed(tmp_path):
    """With a stand-in for python: the supervisor is real, the processes of the run are killed once."""
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    command = [LAUNCH / "local.sh", "2", "configs/base.py", f"--workdir={tmp_path / 'run'}"]
    environment = {**os.environ, "PYTHON": str(python), "FOLDER": str(tmp_path), "RESTARTS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=LAUNCH.parent)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("supervise")] == [
        "supervise: ended with code 75: restart 1 in 5 s",
        "supervise: ended with code 0: not started again",
    ]


def test_a_rehearsal_begins_in_the_folder_of_its_script(tmp_path):
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    (tmp_path / "killed").touch()  # no process of the run is
    command = ["bash", "local.sh", "2", "../configs/base.py", f"--workdir={tmp_path / 'run'}"]
    environment = {**os.environ, "PYTHON": str(python), "FOLDER": str(tmp_path), "PYTHONPATH": str(LAUNCH.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=LAUNCH)
    assert (done.returncode, done.stderr) == (0, "supervise: ended with code 0: not started again\n")
