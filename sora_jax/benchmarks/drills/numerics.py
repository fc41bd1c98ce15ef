"""Batches that are not finite."""

import numpy as np

from sora_jax.benchmarks.drills.bench import EVERY, STAGE, STEPS, Bench, saved_steps, steps_done
from sora_jax.benchmarks.drills.comparing import arrays, difference
from sora_jax.benchmarks.drills.registry import Result, Tally, drill
from sora_jax.core.errors import NumericsError


@drill(target="bitwise as a run without it", full=1)
def nan_batch(bench: Bench, count: int) -> Result:
    """A batch, early or late, is not a number; against a run that leaves that step out.

    The log must name the step, and every leaf of the last checkpoint must be the same bit for bit.
    """
    random, tally = bench.random("nan_batch"), Tally()
    for _ in range(count):
        step = int(random.integers(2, STEPS))
        workdir, without = bench.prepared(), bench.prepared()
        ended = bench.run(*bench.flags(workdir), disturbance=f"nan_batch:{step}")
        left_out = bench.run(*bench.flags(without), disturbance=f"leave_out:{step}")
        fault = ""
        if ended.code or left_out.code:
            fault = f"codes {ended.code} and {left_out.code}: {ended.last_line} {left_out.last_line}"
        elif f"step {step}" not in ended.err:
            fault = f"step {step} is not named"
        tally.check(fault or difference(without, workdir, losses_too=False))
    return tally.result("")


@drill(target="code 65, only finite checkpoints", full=2)
def nan_forever(bench: Bench, count: int) -> Result:
    """From a step on no batch is a number: the run must end with code 65, and what it saved must be finite."""
    random, tally = bench.random("nan_forever"), Tally()
    for _ in range(count):
        step, workdir = int(random.integers(2, STEPS // 2)), bench.prepared()
        ended = bench.run(*bench.flags(workdir), disturbance=f"nan_batch:{step}:{STEPS}")
        fault = "" if ended.code == NumericsError.exit_code else f"code {ended.code}: {ended.last_line}"
        for saved in saved_steps(workdir):
            for name, leaf in arrays(workdir, saved).items():
                values = np.asarray(leaf)
                if np.issubdtype(values.dtype, np.floating) and not np.all(np.isfinite(values)):
                    fault = fault or f"{name} of step {saved} of {STAGE} is saved and not finite"
        tally.check(fault)
    return tally.result("")


@drill(target="the step that made them is named", full=2)
def failed_step(bench: Bench, count: int) -> Result:
    """From a step on no batch is a number; what the run left must reproduce the step at which it gave up.

    `sora_jax.replay --failed` must find the numbers that are not finite in the batch, and none in the weights.
    """
    random, tally = bench.random("failed_step"), Tally()
    for _ in range(count):
        step, workdir = int(random.integers(2, STEPS // 2)), bench.prepared()
        ended = bench.run(*bench.flags(workdir), disturbance=f"nan_batch:{step}:{STEPS}")
        replay = bench.run(f"--workdir={workdir}", f"--stage={STAGE}", "--failed", module="sora_jax.replay")
        last = step + 9  # of as many as guard.max_skipped_steps allows
        fault = "" if replay.code == 0 else f"code {replay.code}: {replay.last_line}"
        if not fault and f"step {last} of {STAGE}: " not in replay.out:
            fault = f"it is not step {last}: {replay.out[:80]}"
        # The batch on the disk is what came from the data; the disturbance made it bad on its way to the step.
        if not fault and "weights" in replay.out:
            fault = "the weights that it left are not finite"
        tally.check(fault if ended.code == NumericsError.exit_code else f"code {ended.code}: {ended.last_line}")
    return tally.result("")


@drill(target="the step is named", full=20, quick=2)
def wrong_element(bench: Bench, count: int) -> Result:
    """One bit of one weight flips as a step begins, as on a device that computes wrongly; nothing fails.

    `sora_jax.replay` from the checkpoint before must end with code 65 and name that step.
    """
    random, tally = bench.random("wrong_element"), Tally()
    config = {"checkpoint__keep": STEPS}
    for trial in range(count):
        workdir = bench.halfway(**config)
        start = saved_steps(workdir)[-1]
        step = int(random.integers(start + 1, start + EVERY + 1))
        ended = bench.run(*bench.flags(workdir, **config), disturbance=f"wrong_element:{step}:{trial}")
        flags = (f"--workdir={workdir}", f"--stage={STAGE}", f"--checkpoint={start}", f"--steps={EVERY}")
        replay = bench.run(*flags, module="sora_jax.replay")
        fault = "" if ended.code == 0 else f"code {ended.code}: {ended.last_line}"
        if not fault and (replay.code != NumericsError.exit_code or f"after step {step} of" not in replay.err):
            fault = f"a bit flipped in step {step}, and replay says: {replay.last_line}"
        tally.check(fault)
    return tally.result("")


@drill(target="bitwise as from the start", full=2)
def spike(bench: Bench, count: int) -> Result:
    """A batch is a hundred times as large, and the config says to go back; then the same with a SIGKILL on the way.

    The run must go back once, and both ends must be the same bit for bit.
    """
    random, tally = bench.random("spike"), Tally()
    rules = {"spike_deviations": 8.0, "on_spike": "rewind", "window": 50, "rewind_steps": 15, "rewind_batches": 10}
    config = {f"guard__{key}": value for key, value in rules.items()}
    for _ in range(count):
        step = int(random.integers(100, STEPS - EVERY))
        once, twice = bench.prepared(**config), bench.prepared(**config)
        wild = f"wild_batch:{step - 1}"
        ended = bench.run(*bench.flags(once, **config), disturbance=wild)
        fault = "" if ended.code == 0 else f"code {ended.code}: {ended.last_line}"
        if not fault and ended.err.count(f"back from step {step} to step ") != 1:
            fault = f"it did not go back from step {step}"
        running = bench.start(*bench.flags(twice, **config), disturbance=wild)
        running.wait_for(lambda where=running: "leaving out those before it" in where.err())
        running.wait_for(lambda where=twice, after=step: steps_done(where) > after)
        running.kill()
        running.wait()
        again = bench.run(*bench.flags(twice, **config), disturbance=wild)
        tally.check(fault or (f"code {again.code}: {again.last_line}" if again.code else difference(once, twice)))
    return tally.result("")
