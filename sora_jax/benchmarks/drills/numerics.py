"""Batches that are not finite."""

import numpy as np

from sora_jax.benchmarks.drills.bench import STAGE, STEPS, Bench, saved_steps
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
