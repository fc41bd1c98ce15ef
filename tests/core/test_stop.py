"""Signals end what does not ask, unless much would be lost; what asks is told (tests of the loop)."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sora_jax.core import stop
from sora_jax.core.errors import Preempted
from sora_jax.core.stop import StopSignal
from tests.processes import free_port, start_python, wait

# Busy where Python sees no signal, as in XLA's compiler.
SCRIPT = """
import hashlib, sys
from pathlib import Path
from sora_jax.core import commands, failure, stop

folder, at_stake, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
stop.PATIENCE = 0.5
if at_stake == "much":
    stop._LITTLE = 0.0

def main(_):
    with failure.recorded(folder, process=0, processes=1), stop.StopSignal() as asked:
        failure.at(stage="evaluation")
        if at_stake != "nothing":
            asked.worked()
        print("busy", flush=True)
        while asked.name is None:
            hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
        hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)  # the signal came before: waited for longer than patience lasts
        asked.check("step 3 is saved")

sys.argv = sys.argv[:1]
commands.run_command(main, commands.Flags())
"""
LONG = 2_000_000_000
# Two of one run, of which one waits for the other, which is busy.
PAIR = """
import hashlib, sys
from pathlib import Path
from absl import flags
flags.FLAGS(sys.argv[:1])
from sora_jax.core import distributed, failure, stop

port, index, folder, rounds = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
stop.PATIENCE = 1.0
cluster = distributed.Cluster(coordinator=f"127.0.0.1:{port}", count=2, index=index)
with (
    distributed.joined(cluster, purpose={}, timeout_s=60, heartbeat_s=20),
    failure.recorded(folder, process=index, processes=2),
    stop.StopSignal(),
    distributed.losses_named(),
):
    failure.at(stage="evaluation")
    print("busy", file=sys.stderr, flush=True)
    if index == 1:
        hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
    distributed.wait_for_all("a place")
"""


@pytest.mark.parametrize(
    ("number", "at_stake", "rounds", "said"),
    [
        (signal.SIGTERM, "nothing", LONG, "stopped by SIGTERM during evaluation: everything is saved, and the same"),
        (signal.SIGINT, "little", LONG, "stopped by SIGINT during evaluation: less than 60 s of work was not saved, "),
        (signal.SIGTERM, "much", 3_000_000, "stopped by SIGTERM: step 3 is saved, and the same command goes on from"),
    ],
)
def test_what_is_too_busy_to_ask_is_ended_unless_much_is_at_stake(tmp_path, number, at_stake, rounds, said):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), at_stake, str(rounds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        process.send_signal(number)
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 85, errors
    assert time.monotonic() - began < 10 or at_stake == "much"
    assert errors.startswith(f"Preempted: {said}")
    assert errors.count("\n") == 1
    record = json.loads((tmp_path / "failure.json").read_text())
    assert record["code"] == 85
    assert record["cause"].startswith(said)


@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_of_two_ends_both(tmp_path, told):
    port = free_port()
    both = [start_python("-c", PAIR, port, index, tmp_path, LONG) for index in range(2)]
    for process in both:
        while "busy" not in process.stderr.readline():
            assert process.poll() is None
    both[told].send_signal(signal.SIGTERM)
    began = time.monotonic()
    ends = wait(both, seconds=60)
    assert time.monotonic() - began < 10
    assert [code for code, _, _ in ends] == [85, 85], ends
    for name in ("failure.json", "failure-1.json"):
        assert json.loads((tmp_path / name).read_text())["code"] == 85


def test_a_run_that_answers_is_left_to_itself(monkeypatch):
    """Were it not, this process would end."""
    monkeypatch.setattr(stop, "PATIENCE", 0.5)
    with StopSignal() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Preempted, match="stopped by SIGTERM: a step is saved"):
            asked.check("a step is saved")
        time.sleep(1.0)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1
