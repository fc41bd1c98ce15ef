"""The main job: trains every stage of the config in order, goes on by itself, samples, evaluates, reports.

python -m sora_jax.main --config=configs/base.py --workdir=runs/base
python -m sora_jax.main --config=configs/base.py --workdir=runs/short --config.stages.videos.steps=200

Several processes are one run when each is told where process 0 listens, how many they are and which it is, or, on a TPU
pod or in a Slurm job, to find out by itself (--distributed); docs/launching.md has a launcher for each kind of machine.
"""

from collections.abc import Sequence

from sora_jax.core.commands import Flags, run_command
from sora_jax.core.host_memory import use_huge_pages

_FLAGS = Flags()
_CONFIG = _FLAGS.config("config", "configs/base.py", "The experiment; keys are overridden as --config.KEY=VALUE.")
_WORKDIR = _FLAGS.workdir("The folder that everything is written to.")
_UNTIL = _FLAGS.string("until", None, "The last kind of stage to run, such as autoencoder or prepare; the rest waits.")
_FRESH_DATA = _FLAGS.switch(
    "fresh_data", False, "Keep the weights and go on although the data of a stage in progress changed."
)
_DEBUG = _FLAGS.switch(
    "debug", False, "Stop at the operation that makes a NaN, refuse implicit transfers, unroll blocks; slow."
)
_COORDINATOR = _FLAGS.string(
    "coordinator", None, "HOST:PORT at which process 0 listens for the others. Else JAX_COORDINATOR_ADDRESS."
)
_COUNT = _FLAGS.integer(
    "process_count", None, "Processes of the run. Else JAX_NUM_PROCESSES; one if neither is given.", least=1
)
_INDEX = _FLAGS.integer("process_index", None, "Number of this process, from 0. Else JAX_PROCESS_ID.", least=0)
_FLAGS.rename("process_id", "process_index")
_DISTRIBUTED = _FLAGS.switch(
    "distributed", False, "Ask the TPU pod, Slurm or MPI job around this process for what of these three is not given."
)
_JOIN_TIMEOUT = _FLAGS.number("join_timeout", 600.0, "Seconds to wait for all processes to start.", least=1.0)
_HEARTBEAT = _FLAGS.number("heartbeat", 100.0, "Seconds of silence after which a process counts as lost.", least=1.0)


def main(_: Sequence[str]) -> None:
    """Runs the stages that are not done yet."""
    use_huge_pages()
    # Here, because they bring jax: a second start should cost nothing.
    from sora_jax.core import debugging
    from sora_jax.core.config import to_json
    from sora_jax.core.distributed import find_cluster, joined
    from sora_jax.experiment.model_settings import warn_of_unheard
    from sora_jax.experiment.run import run

    if _DEBUG.value:
        debugging.switch_on()
    wanted = {"until": _UNTIL.value, "fresh_data": _FRESH_DATA.value}
    cluster = find_cluster(
        _COORDINATOR.value, _COUNT.value, _INDEX.value, detect=_DISTRIBUTED.value, timeout_s=_JOIN_TIMEOUT.value
    )
    purpose = {"config": to_json(_CONFIG.value), "workdir": _WORKDIR.value, "debug": _DEBUG.value, **wanted}
    with joined(cluster, purpose=purpose, timeout_s=_JOIN_TIMEOUT.value, heartbeat_s=_HEARTBEAT.value):
        warn_of_unheard(_CONFIG.value, _CONFIG.given)
        run(_CONFIG.value, _WORKDIR.value, **wanted)


if __name__ == "__main__":
    run_command(main, _FLAGS)
