"""Programs compiled beside other work, before they are called.

jax keeps what it compiled by function, shapes and places of the arguments, whichever thread compiled it: a call of the
same jitted function starts at once. While a device trains, the host has time for it; and where the device is the host
itself, training leaves parts of its cores idle, and so does the compiler.
"""

import threading
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any, Self

import jax
from absl import logging
from jax.sharding import Mesh

from sora_jax.core import debugging
from sora_jax.core.errors import BUSY
from sora_jax.core.host_memory import give_back
from sora_jax.core.mesh import current_platform

# On GPUs XLA tries kernels out as it compiles, beside which nothing else may run.
_PLATFORMS = ("cpu", "tpu")


def is_possible() -> bool:
    """Returns whether programs can be compiled beside others.

    Several processes compile together what they run together, and what is debugged is compiled otherwise.
    """
    return jax.process_count() == 1 and not debugging.is_on() and current_platform() in _PLATFORMS


class Ahead:
    """Compiles programs one after the other in a thread of its own; leaving it drops those that have not begun."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, tuple[Callable[[], Any], Mesh]] = {}
        self._compiling: Hashable | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        with self._changed:
            self._programs.clear()
            thread = self._thread  # it forgets itself as it ends
        if error is None and thread is not None:
            thread.join()

    def add(self, name: Hashable, lower: Callable[[], Any], mesh: Mesh) -> None:
        """Compiles what `lower` returns on a mesh once those added before are, unless `wait_for(name)` comes first.

        Where that is not possible, nothing is.
        """
        if not is_possible():
            return
        with self._changed:
            self._programs[name] = lower, mesh
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=BUSY, daemon=True)
                self._thread.start()

    def wait_for(self, name: Hashable) -> None:
        """Returns when a program is not being compiled here; one that has not begun is then left to the caller."""
        with self._changed:
            self._programs.pop(name, None)
            self._changed.wait_for(lambda: self._compiling != name)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._programs:
                    self._thread = None
                    return
                self._compiling = next(iter(self._programs))
                lower, mesh = self._programs.pop(self._compiling)
            try:
                with jax.set_mesh(mesh):
                    lower().compile()
            except Exception as error:  # whoever calls the program meets it again, where it is told
                logging.debug("compiling %s ahead: %s", self._compiling, error)
            finally:
                give_back()
                with self._changed:
                    self._compiling = None
                    self._changed.notify_all()
