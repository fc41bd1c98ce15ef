"""How the loop calls the step: named in traces, traced where the config says, guarded where debugging is on.

WORKDIR/profile/STAGE/plugins/profile/TIME/   what TensorBoard and Perfetto show of the steps `log.profile_steps`
"""

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import jax
from absl import logging
from jax.sharding import Mesh

from sora_jax.core import debugging
from sora_jax.core.distributed import is_first
from sora_jax.core.sharding import put_whole

# What stands for arrays by name.
Shaped = Mapping[str, jax.Array | jax.ShapeDtypeStruct]
State = TypeVar("State")
Batch = TypeVar("Batch")
Scalars = TypeVar("Scalars")


class StepRunner(Generic[State, Batch, Scalars]):
    """Calls `step(state, batch, scalars)` by its number, 1-based, and `before(batch)` before it.

    Process 0 writes a trace of the steps from the first to the last of `profile`, once; None: of none. At the end of
    the last one the device is waited for, or its work would not be in the trace.
    """

    def __init__(
        self,
        step: Callable[[State, Batch, Scalars], tuple[State, dict[str, jax.Array]]],
        scalars: Scalars,
        *,
        before: Callable[[Batch], None],
        mesh: Mesh,
        folder: Path,
        profile: tuple[int, int] | None,
    ):
        self._step, self._before, self._folder = step, before, folder
        # Numbers of the host would be transferred at each call.
        self._scalars = jax.tree.map(lambda x: put_whole(x, mesh), scalars) if debugging.is_on() else scalars
        self._profile = profile if is_first() else None
        self._tracing = False

    def __call__(self, number: int, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """Returns what the step does, which is dispatched and not waited for."""
        if self._profile is not None and not self._tracing and self._profile[0] <= number <= self._profile[1]:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._tracing = True
        self._before(batch)
        with jax.profiler.StepTraceAnnotation("train", step_num=number), debugging.no_transfers():
            state, metrics = self._step(state, batch, self._scalars)
        if self._tracing and self._profile is not None and number >= self._profile[1]:
            jax.block_until_ready(metrics)
            self.close()
        return state, metrics

    def close(self) -> None:
        """Ends a trace, also where the stage ends before its last step."""
        if self._tracing:
            jax.profiler.stop_trace()
            logging.info("a trace of steps %d to %d is in %s", *(self._profile or ()), self._folder)
            self._tracing, self._profile = False, None


def program_name(stage: str, batch: Shaped) -> Hashable:
    """Returns what the program of a stage's step on batches of these shapes is called."""
    return stage, *((name, batch[name].shape) for name in sorted(batch))
