"""A JAX/Flax, TPU-first trainer for Sora-like text-to-video models.

import sora_jax

run = sora_jax.open_run("runs/base")
clips = run.sample(["a red circle moves right"], size=(24, 40), frames=9, seed=0)
model = sora_jax.open_model("Wan2.1-T2V-1.3B-Diffusers")
"""

import os
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sora_jax.experiment.session import Session

__all__ = ["open_model", "open_run"]


def open_run(
    workdir: str | os.PathLike[str],
    *,
    checkpoint: str | int = "latest",
    weights: Literal["ema", "params"] = "ema",
    ema: float | None = None,
    devices: Sequence[Any] | None = None,
    lora: Mapping[Any, float] | Sequence[Any] | os.PathLike[str] = (),
) -> "Session":
    """Returns a run that was trained; its models load when they are first needed.

    Args:
      workdir: Its folder.
      checkpoint: Step of the newest diffusion stage with checkpoints, or "latest".
      weights: Of the transformer in that checkpoint: their average, or what its last step left.
      ema: Relative width of that average, such as 0.08 (docs/checkpoints.md); None: the first of `ema.widths`.
      devices: Of jax, that hold the weights and share the work; None: all.
      lora: Files of adapters, and "own" for that of the run, with their weights, such as {"mine.safetensors": 0.8}
        (docs/lora.md).

    Raises:
      UserError: The folder holds no run, or `checkpoint`, `weights` or `ema` is none of these.
    """
    # Here, because it brings jax: a command that only starts another program should cost nothing.
    from sora_jax.experiment.session import open_session

    return open_session(workdir, checkpoint=checkpoint, weights=weights, ema=ema, devices=devices, lora=lora)


def open_model(
    folder: str | os.PathLike[str],
    *,
    changes: Mapping[str, Any] = types.MappingProxyType({}),
    devices: Sequence[Any] | None = None,
    lora: Mapping[Any, float] | Sequence[Any] | os.PathLike[str] = (),
) -> "Session":
    """Returns a public Wan model as it was downloaded; its parts load when they are first needed.

    Args:
      folder: Of all its files, in any of the layouts of docs/public_weights.md; FOLDER#VARIANT says which one it is
        where that cannot be told.
      changes: Values of keys of configs/base.py, such as {"sampling.grid": "diffusers"}.
      devices: Of jax, that hold the weights and share the work; None: all.
      lora: As of `open_run`, files alone.

    Raises:
      UserError: The folder holds no whole model, its parts do not go together, or a key is none.
    """
    from sora_jax.experiment.session import open_public

    return open_public(folder, changes=changes, devices=devices, lora=lora)
