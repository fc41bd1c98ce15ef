"""Stopping in time: a signal is answered where the run asks, and by a second thread where it is too busy to ask.

XLA compiles without looking at signals, half a minute at a time, and whoever sends one may not wait for longer than
some seconds. What is on the disk is whole at any moment, so that a run with nothing at stake may end anywhere.
"""

import logging as standard_logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from sora_jax.core import failure
from sora_jax.core.errors import PeerLost, Preempted, report

# How long the run may take to come to where it asks; seconds. Then it is ended if nothing much is at stake.
PATIENCE = 6.0
# Work of so many seconds may be lost by that: what the first steps did while later ones were still compiled.
_LITTLE = 60.0
# Between two looks at whether another process got the signal, and for the others to end before process 0; seconds.
_LOOK, _LAST = 0.5, 1.0
# Under this name jax's preemption service tells all processes that one of them got the signal.
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"


class StopSignal:
    """Notes SIGTERM and SIGINT instead of dying, so that what is under way is saved first; a second SIGINT kills.

    Of several processes one that gets the signal is enough: jax's preemption service, which then owns SIGTERM, tells
    the others, and lets all stop at the same question. So each process must ask as often as every other.

    A run that does not ask within `PATIENCE` seconds is ended, with the code of `Preempted`, unless it has said that
    it `worked` for more than a minute since it `kept` everything: then it is waited for.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._old: dict[int, Any] = {}
        self._asked = 0
        self._since: float | None = None
        self._over = threading.Event()
        self._watch: threading.Thread | None = None
        self._pipe: tuple[int, int] | None = None
        self._old_pipe = -1

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self
        handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._note}
        if jax.process_count() > 1:
            handlers = {signal.SIGINT: self._pass_on}
        else:
            # Python's own handlers wait for XLA; a byte of each signal comes through a pipe at once.
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._old_pipe = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number, handler in handlers.items():
            self._old[number] = signal.signal(number, handler)
        self._watch = threading.Thread(target=self._wait_for_signal, daemon=True, name="stop")
        self._watch.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._over.set()
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._old_pipe)
            os.write(self._pipe[1], b"\0")
        if self._watch is not None:
            self._watch.join(10 * _LOOK)
        if self._pipe is not None:
            for end in self._pipe:
                os.close(end)
        if isinstance(error, PeerLost) and jax.process_count() > 1 and self._others_know():
            # The others were faster: they were not lost, they did as they were told.
            raise self._preempted(signal.SIGTERM.name) from error

    def asked(self) -> bool:
        """Whether a signal came: the same answer on every process."""
        if self.name is None and jax.process_count() > 1:
            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self.name = signal.SIGTERM.name
        if self.name is not None:
            self._over.set()
        return self.name is not None

    def check(self, saved: str) -> None:
        """Raises Preempted if a signal came; `saved` says in words what the next run goes on from."""
        if self.asked():
            raise Preempted(f"stopped by {self.name}: {saved}, and the same command goes on from there")

    def worked(self) -> None:
        """Notes that something was done that is not saved."""
        if self._since is None:
            self._since = time.monotonic()

    def kept(self) -> None:
        """Notes that everything that was done is saved."""
        self._since = None

    def _note(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _pass_on(self, _: int, __: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _wait_for_signal(self) -> None:
        """Ends the process some time after a signal, unless it has answered by then or much is at stake."""
        name = self._signal_of_others() if self._pipe is None else self._signal_of_pipe(self._pipe[0])
        last = self._pipe is None and jax.process_index() == 0  # it holds what the others need to end well
        if name is None or self._over.wait(PATIENCE + (_LAST if last else 0)):
            return
        while self._at_stake() > _LITTLE:
            if self._over.wait(_LOOK):
                return
        self._leave(name)

    def _signal_of_pipe(self, pipe: int) -> str | None:
        while byte := os.read(pipe, 1):
            if byte[0] in self._old:
                return signal.Signals(byte[0]).name
            if self._over.is_set():
                break
        return None

    def _signal_of_others(self) -> str | None:
        while not self._over.wait(_LOOK):
            if self._others_know():
                return signal.SIGTERM.name
        return None

    def _others_know(self) -> bool:
        client = distributed.global_state.client
        try:
            return client is not None and client.key_value_try_get(_NOTICE) is not None
        except Exception:  # as long as nobody has set it; or the service has gone, and then jax ends the process
            return False

    def _at_stake(self) -> float:
        """Returns the seconds of work that would be lost."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def _preempted(self, name: str) -> Preempted:
        what = "everything is saved" if self._since is None else f"less than {_LITTLE:g} s of work was not saved"
        return Preempted(f"stopped by {name} during {failure.stage()}: {what}, and the same command goes on from there")

    def _leave(self, name: str) -> None:
        preempted = self._preempted(name)
        failure.record(preempted)
        code = report(preempted)
        standard_logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
