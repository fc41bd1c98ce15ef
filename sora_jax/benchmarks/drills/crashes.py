"""A run that is killed, stopped, started twice, or moved to another number of devices."""

import signal
import time
from pathlib import Path
from typing import Any

from etils import epath

from sora_jax.benchmarks.drills.bench import (
    EVERY,
    LONG,
    STAGE,
    STEPS,
    Bench,
    Ended,
    Running,
    losses,
    saved_steps,
    steps_done,
)
from sora_jax.benchmarks.drills.comparing import difference, relative_difference
from sora_jax.benchmarks.drills.registry import Result, Tally, drill
from sora_jax.checkpoints import manifest
from sora_jax.core.errors import Preempted

# Seconds that SIGTERM may take, and how much losses may differ between meshes.
_STOP_SECONDS, _MESH_DIFFERENCE = 10.0, 1e-5


def training_seconds(bench: Bench) -> float:
    """Returns how long an uninterrupted run takes from its first step to its end."""
    workdir = bench.prepared()
    running = bench.start(*bench.flags(workdir))
    running.wait_for(lambda: steps_done(workdir) > 0)
    began = time.monotonic()
    running.wait()
    return time.monotonic() - began


def start_and_wait(bench: Bench, workdir: Path, seconds: float) -> Running:
    """Starts the run, and returns it so many seconds after its next step, or when it has ended."""
    before = steps_done(workdir)
    running = bench.start(*bench.flags(workdir))
    running.wait_for(lambda: steps_done(workdir) > before)
    until = time.monotonic() + seconds
    running.wait_for(lambda: time.monotonic() > until)
    return running


@drill(target="bitwise the same end", full=20, quick=2)
def kill_random(bench: Bench, count: int) -> Result:
    """SIGKILL at one or two random moments of the last stage, restarted until done, against an uninterrupted run.

    Every leaf of the last checkpoint, the data position and the loss of every step must be the same bit for bit.
    """
    expected, longest, random, tally = bench.finished(), training_seconds(bench), bench.random("kill_random"), Tally()
    kills = 0
    while tally.tried < count:
        workdir, before = bench.prepared(), kills
        for _ in range(random.integers(1, 3)):
            running = start_and_wait(bench, workdir, random.uniform(0, longest))
            if running.alive:
                running.signal(signal.SIGKILL)
                kills += running.wait().code == -signal.SIGKILL
        if kills == before:
            continue  # the machine was faster than when it was timed: this was no trial
        ended = bench.run(*bench.flags(workdir))
        fault = f"the last start ended with code {ended.code}: {ended.last_line}" if ended.code else ""
        tally.check(fault or difference(expected, workdir))
    return tally.result(f"{kills} kills in {tally.tried} runs of {STEPS} steps")


@drill(target="goes on from the last committed step", full=20, quick=2)
def kill_in_save(bench: Bench, count: int) -> Result:
    """SIGKILL while a checkpoint is written, before or after its manifest, in both cases before its commit.

    The next start must go on from the step before, leave no unfinished folder, and come to the same end bit for bit.
    """
    expected, random, tally = bench.finished(), bench.random("kill_in_save"), Tally()
    for trial in range(count):
        workdir = bench.prepared()
        step = EVERY * int(random.integers(2, STEPS // EVERY + 1))
        moment = ("before", "after")[trial % 2]
        killed = bench.run(*bench.flags(workdir), disturbance=f"kill_in_save:{step}:{moment}")
        ended = bench.run(*bench.flags(workdir))
        left = [path.name for path in (workdir / "checkpoints" / STAGE).iterdir() if not path.name.isdecimal()]
        fault = ""
        if killed.code != -signal.SIGKILL:
            fault = f"it was to die in the save of step {step}, and ended with code {killed.code}: {killed.last_line}"
        elif f"going on from step {step - EVERY}" not in ended.err:
            fault = f"killed in the save of step {step}, it did not go on from {step - EVERY}: {ended.last_line}"
        elif left:
            fault = f"{left[0]} was left"
        tally.check(fault or difference(expected, workdir))
    return tally.result("half of them before, half after the manifest was written")


@drill(target="saved and exit 85 within 10 s", full=10, quick=2)
def sigterm(bench: Bench, count: int) -> Result:
    """SIGTERM at a random moment of the last stage.

    The run must end with code 85 within ten seconds, name the step that it saved, and that step must be whole.
    """
    longest, random, tally, slowest = training_seconds(bench), bench.random("sigterm"), Tally(), 0.0
    while tally.tried < count:
        workdir = bench.prepared()
        running = start_and_wait(bench, workdir, random.uniform(0, 0.8 * longest))
        if not running.alive:
            continue
        ended, took, fault = _stop(running)
        slowest = max(slowest, took)
        tally.check(fault or _unsaved(workdir, ended.last_line))
    return tally.result(f"slowest {slowest:.1f} s")


@drill(target="exit 85 within 10 s", full=10)
def sigterm_base(bench: Bench, count: int) -> Result:
    """SIGTERM in the first minute and a half of the base config itself: as it starts, compiles, trains or saves.

    The run must end with code 85 within ten seconds, and every checkpoint there is must be whole.
    """
    random, tally, slowest = bench.random("sigterm_base"), Tally(), 0.0
    for trial in range(count):
        workdir = bench.new("base")
        running = bench.start(f"--config={bench.config}", f"--workdir={workdir}")
        running.wait_for(lambda running=running: "stage 1 of" in running.out())
        # One in each tenth of the time, so that few trials see all that happens in it.
        until = time.monotonic() + 90 * (trial + random.uniform()) / count
        running.wait_for(lambda until=until: time.monotonic() > until)
        _, took, fault = _stop(running)
        slowest = max(slowest, took)
        for path in sorted(workdir.glob("checkpoints/*/*")):
            fault = fault or manifest.distrust(epath.Path(path)) or ""
        tally.check(fault)
    return tally.result(f"slowest {slowest:.1f} s")


def _stop(running: Running) -> tuple[Ended, float, str]:
    """Sends SIGTERM; returns how the run ended, after how many seconds, and what is wrong with that, "" if nothing."""
    running.signal(signal.SIGTERM)
    began = time.monotonic()
    ended = running.wait()
    took = time.monotonic() - began
    if ended.code != Preempted.exit_code:
        return ended, took, f"exit code {ended.code}: {ended.last_line}"
    return ended, took, "" if took <= _STOP_SECONDS else f"it took {took:.1f} s: {ended.last_line}"


def _unsaved(workdir: Path, said: str) -> str:
    """Returns what is wrong with the checkpoint that the message of a stopped run names; "" if nothing."""
    steps = saved_steps(workdir)
    newest = steps[-1] if steps else None
    if f"step {newest} of {STAGE} is saved" not in said and f"stage {STAGE} is done" not in said:
        return f"the newest checkpoint is {newest}, and it said: {said}"
    return manifest.distrust(epath.Path(workdir / "checkpoints" / STAGE / str(newest))) or ""


@drill(target="the second start refuses; a lock of the dead is none", full=3)
def two_starts(bench: Bench, count: int) -> Result:
    """A second trainer is started on the workdir of a running one, which is then killed and started again.

    The second must end with code 2 and say that another run is writing; the third must find no lock, and go on.
    """
    tally = Tally()
    for _ in range(count):
        workdir = bench.prepared(**LONG)
        running = bench.start(*bench.flags(workdir, **LONG))
        running.wait_for(lambda workdir=workdir: bool(saved_steps(workdir)))
        second = bench.run(*bench.flags(workdir, **LONG))
        alive = running.alive
        running.signal(signal.SIGKILL)
        running.wait()
        third = bench.start(*bench.flags(workdir, **LONG))
        third.wait_for(lambda third=third: "going on from step" in third.err())
        third.signal(signal.SIGTERM)
        ended = third.wait()
        fault = "" if alive else "the second start ended the first"
        if second.code != 2 or "another run is writing" not in second.err:
            fault = fault or f"the second start ended with code {second.code}: {second.last_line}"
        tally.check(fault or ("" if ended.code == 85 else f"the third ended with code {ended.code}: {ended.last_line}"))
    return tally.result("")


@drill(target="bitwise the same end", full=3)
def same_command(bench: Bench, count: int) -> Result:
    """The same command in another workdir must give the same weights, moments, averages and losses bit for bit."""
    expected, tally = bench.finished(), Tally()
    for _ in range(count):
        workdir = bench.prepared()
        bench.whole(workdir)
        tally.check(difference(expected, workdir))
    return tally.result(f"{STEPS} steps")


@drill(target="loss of every step within 1e-5", full=3)
def other_mesh(bench: Bench, count: int) -> Result:
    """Stopped and gone on with 8, 4, 2 and 8 simulated devices, against 8 throughout.

    Trials split the batch, the weights, and heads with the batch, in turn. The loss of each step may differ by 1e-5 of
    itself.
    """
    splits: tuple[dict[str, Any], ...] = ({}, {"mesh__fsdp": 2}, {"mesh__tensor": 2})
    tally, largest = Tally(), 0.0
    for trial in range(count):
        split = splits[trial % len(splits)]
        expected = losses(bench.finished(devices=8, **split))
        workdir = bench.prepared(**split)
        for devices, until in ((8, 50), (4, 100), (2, 150)):
            running = bench.start(*bench.flags(workdir, **split), devices=devices)
            running.wait_for(lambda until=until, workdir=workdir: steps_done(workdir) >= until)
            running.signal(signal.SIGTERM)
            running.wait()
        bench.whole(workdir, devices=8, **split)
        found = relative_difference(expected, losses(workdir))
        largest = max(largest, found)
        tally.check("" if found <= _MESH_DIFFERENCE else f"{found:.1e} with {split or 'data'}")
    return tally.result(f"largest difference {largest:.1e}")
