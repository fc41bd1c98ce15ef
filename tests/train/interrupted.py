"""Runs a config as `sora_jax.main` does, and sends itself a signal where it is told to.

python interrupted.py CONFIG WORKDIR STAGE:DONE:SIGNAL ...

DONE counts the steps, or clips, that progress has shown. After SIGTERM the run is started again in this process;
after SIGKILL there is no process.
"""

import os
import runpy
import signal
import sys

from absl import flags

from sora_jax.core import stop
from sora_jax.core.errors import Preempted
from sora_jax.experiment import run
from sora_jax.train import progress

flags.FLAGS(sys.argv[:1])
config, workdir, *events = sys.argv[1:]
waiting = {tuple(event.split(":")[:2]): event.split(":")[2] for event in events}
update = progress.RunProgress.update


def update_and_signal(shown: progress.RunProgress, done: int, facts: str = "") -> None:
    """Shows progress, and sends the signal that was asked for here, once."""
    update(shown, done, facts)
    name = waiting.pop((shown._now_in.part.name, str(done)), None)
    if name is not None:
        os.kill(os.getpid(), getattr(signal, name))


progress.RunProgress.update = update_and_signal
stop.PATIENCE = 900.0  # this process must live on
while True:
    try:
        run.run(runpy.run_path(config)["get_config"](), workdir)
        break
    except Preempted as told:
        print(told, flush=True)
assert not waiting, f"never came to {waiting}"
