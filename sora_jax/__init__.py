"""A JAX/Flax, TPU-first trainer for Sora-like text-to-video models.

import sora_jax

run = sora_jax.open_run("runs/base")
clips = run.sample(["a red circle moves right"], size=(24, 40), frames=9, seed=0)
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sora_jax.experiment.session import Session

__all__ = ["open_run"]


def open_run(
    workdir: str | os.PathLike[str],
    *,
    checkpoint: str | int = "latest",
    weights: Literal["ema", "params"] = "ema",
    devices: Sequence[Any] | None = None,
) -> "Session":
    """Returns a run that was trained; its models load when they are first needed.

    Args:
      workdir: Its folder.
      checkpoint: Step of the newest diffusion stage with checkpoints, or "latest".
      weights: Of the transformer in that checkpoint: their average, or what its last step left.
      devices: Of jax, that hold the weights and share the work; None: all.

    Raises:
      UserError: The folder holds no run, or `checkpoint` or `weights` is none of these.
    """
    # Here, because it brings jax: a command that only starts another program should cost nothing.
    from sora_jax.experiment.session import open_session

    return open_session(workdir, checkpoint=checkpoint, weights=weights, devices=devices)
