"""Which platform jax looks for: none that is not there. Nothing here imports jax."""

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from absl import logging

_ROOT = Path("/")
# Of devices: TPUs, GPUs of NVIDIA, also under Windows, and of AMD. TPUs of virtual machines are known by their maker.
_DEVICES = ("dev/accel*", "dev/vfio/*", "dev/nvidia*", "dev/dxg", "dev/kfd")
_MAKERS, _GOOGLE = "sys/bus/pci/devices/*/vendor", "0x1ae0"
# With these a user, or a cluster, says that there is a TPU, or that jax should look for one.
_TOLD = ("TPU_", "MEGASCALE_", "JAX_FORCE_TPU_INIT", "JAX_PLATFORMS", "JAX_PLATFORM_NAME")
# jax sets the one where it sees no TPU, libtpu the other wherever it is.
_NOT_TOLD = ("TPU_SKIP_MDS_QUERY", "TPU_LIBRARY_PATH")


def leave_out_tpu(root: Path = _ROOT) -> None:
    """Has jax compute on CPU where libtpu is installed, as for plans, and `root` shows no accelerator of any kind.

    Looking for its TPU, libtpu writes errors of its own to the terminal (`E0000 ...`) that a user can do nothing about.
    Must be called before jax has devices. Does nothing where a variable says what to look for.
    """
    if importlib.util.find_spec("libtpu") is None or _told(os.environ) or _seen(root):
        return
    logging.info("no TPU is to be seen and libtpu not asked: computing on CPU; JAX_PLATFORMS=tpu asks it")
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # it has read the environment
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _told(variables: Iterable[str]) -> bool:
    return any(name.startswith(_TOLD) and name not in _NOT_TOLD for name in variables)


def _seen(root: Path) -> bool:
    """Returns whether there are accelerators, as far as the system shows."""
    if any(True for pattern in _DEVICES for _ in root.glob(pattern)):
        return True
    return any(path.read_text().strip() == _GOOGLE for path in root.glob(_MAKERS))
