"""Two processes of one run, of which one is killed, stops or never comes."""

import signal
import time
from pathlib import Path

from sora_jax.benchmarks.drills.bench import LONG, Bench, Running, free_port, steps_done
from sora_jax.benchmarks.drills.registry import Result, Tally, drill
from sora_jax.core.errors import PeerLost

# Seconds of silence after which a process counts as lost, and how much later the survivor must have ended.
_HEARTBEAT, _GRACE = 10, 5


def start_both(bench: Bench, workdir: Path, *, only: tuple[int, ...] = (0, 1), timeout: int = 300) -> list[Running]:
    """Starts the processes `only` of two."""
    port = free_port()
    return [
        bench.start(
            *bench.flags(workdir, **LONG),
            f"--coordinator=127.0.0.1:{port}",
            "--process_count=2",
            f"--process_index={number}",
            f"--heartbeat={_HEARTBEAT}",
            f"--join_timeout={timeout}",
        )
        for number in only
    ]


def lose(bench: Bench, count: int, how: signal.Signals) -> Result:
    """Sends a signal to one of two processes, each in turn, and times how the other ends."""
    tally, slowest = Tally(), 0.0
    for trial in range(count):
        workdir, victim = bench.prepared(**LONG), trial % 2
        both = start_both(bench, workdir)
        both[0].wait_for(lambda workdir=workdir: steps_done(workdir) >= 30)
        both[victim].signal(how)
        began = time.monotonic()
        ended = both[1 - victim].wait(seconds=120)
        took = time.monotonic() - began
        slowest = max(slowest, took)
        bench.end_all()
        if ended.code != PeerLost.exit_code:
            tally.check(f"without process {victim} the other ended with code {ended.code}: {ended.last_line}")
        else:
            tally.check("" if took <= _HEARTBEAT + _GRACE else f"without process {victim} it took {took:.1f} s")
    return tally.result(f"slowest {slowest:.1f} s")


@drill(target="code 75 within heartbeat (10 s) + 5 s", full=5)
def peer_killed(bench: Bench, count: int) -> Result:
    """SIGKILL to one of two processes, each in turn; the other must end with code 75 in time."""
    return lose(bench, count, signal.SIGKILL)


@drill(target="code 75 within heartbeat (10 s) + 5 s", full=5)
def peer_stopped(bench: Bench, count: int) -> Result:
    """SIGSTOP to one of two processes, each in turn, as a machine that hangs; the other must end with code 75."""
    return lose(bench, count, signal.SIGSTOP)


@drill(target="code 75 and its number, in time", full=2)
def peer_absent(bench: Bench, count: int) -> Result:
    """One of two processes, each in turn, is never started; the other must end with code 75 and say who is missing."""
    tally, slowest, timeout = Tally(), 0.0, 10
    for trial in range(count):
        absent = 1 - trial % 2
        (running,) = start_both(bench, bench.prepared(**LONG), only=(1 - absent,), timeout=timeout)
        ended = running.wait(seconds=120)
        slowest = max(slowest, ended.seconds)
        fault = ""
        if ended.code != PeerLost.exit_code or f"process {absent}" not in ended.last_line:
            fault = f"code {ended.code}: {ended.last_line}"
        elif ended.seconds > timeout + _GRACE + 10:
            fault = f"it took {ended.seconds:.1f} s"
        tally.check(fault)
    return tally.result(f"slowest {slowest:.1f} s from its start, at --join_timeout={timeout}")
