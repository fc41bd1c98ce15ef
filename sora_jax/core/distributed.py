"""Several processes as one program: start-up, broadcasts and barriers, shutdown.

Every process runs the same program on arrays that are sharded over the devices of all. Process 0 alone writes to the
workdir and to stdout. It also takes every decision that depends on files, and broadcasts it with the functions here.
With one process nothing in this module costs anything.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from absl import flags, logging
from jax._src import clusters, distributed
from jax.experimental import multihost_utils

from sora_jax.core import failure
from sora_jax.core.errors import CommandError, PeerLost, UserError, report
from sora_jax.core.rendezvous import meet

# Waiting has no limit of its own: a process that is lost ends it.
_DAY_MS = 24 * 3600 * 1000
# How long a process that fails waits for others that fail in the same way, so that each can say so; seconds.
_PARTING = 5.0
# How long processes that have just met have at least to connect; seconds.
_CONNECTING = 30.0
# What is said when an operation fails because another process has gone: by gloo, by the service of jax, by NCCL.
_LOST = re.compile(
    r"gloo|coordination service|UNAVAILABLE|DEADLINE_EXCEEDED|heartbeat|Barrier failed|NCCL|Connection (reset|closed)",
    re.IGNORECASE,
)
_PLACES = (
    "--coordinator (JAX_COORDINATOR_ADDRESS)",
    "--process_count (JAX_NUM_PROCESSES)",
    "--process_index (JAX_PROCESS_ID)",
)
_meetings = itertools.count()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which of several processes this is.

    Attributes:
      coordinator: HOST:PORT of process 0, as the others reach it.
      count: Processes.
      index: Number of this one, from 0.
      devices: Which accelerators of its machine are this process's, by number; None: all that it sees.
    """

    coordinator: str
    count: int
    index: int
    devices: tuple[int, ...] | None = None

    def __post_init__(self):
        if not re.fullmatch(r".+:\d{1,5}", self.coordinator):
            raise UserError(f"--coordinator={self.coordinator} has no port: give HOST:PORT of process 0")
        if not 0 <= self.index < self.count:
            raise UserError(
                f"--process_index={self.index} is not below --process_count={self.count}: processes are numbered from 0"
            )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def find_cluster(
    coordinator: str | None, count: int | None, index: int | None, *, detect: bool, timeout_s: float
) -> Cluster | None:
    """Returns the processes that this one belongs to; None if it is alone.

    What is None is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and then, where told to
    `detect`, from the TPU pod, Slurm or MPI job around this process, for whose names it may have to wait `timeout_s`.
    Raises UserError when part of it is known and part is not.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _number("JAX_NUM_PROCESSES") if count is None else count
    index = _number("JAX_PROCESS_ID") if index is None else index
    devices = None
    if detect:
        # What jax.distributed.initialize does by itself: only, here the answer is known before anybody waits.
        try:
            found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, count, index, None, None, round(timeout_s)
            )
        except Exception as error:  # of metadata servers, name servers, variables that are no numbers
            raise UserError(f"--distributed: the processes around this one cannot be made out: {error}") from error
        coordinator, count, index, devices = found
    if coordinator is None and count is None and index is None and not detect:
        return None
    if coordinator is None or count is None or index is None:
        missing = [name for name, value in zip(_PLACES, (coordinator, count, index), strict=True) if value is None]
        seen = "--distributed found no TPU pod, Slurm or MPI job around this process; " if detect else ""
        raise UserError(f"{seen}several processes need all of {', '.join(_PLACES)}: missing {', '.join(missing)}")
    cluster = Cluster(
        coordinator=coordinator, count=count, index=index, devices=None if devices is None else tuple(devices)
    )
    return cluster if cluster.count > 1 else None


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.strip().isdecimal():
        raise UserError(f"{variable}={text} is not a number of processes, or of one: correct it")
    return int(text)


@contextlib.contextmanager
def joined(cluster: Cluster | None, *, purpose: dict[str, Any], timeout_s: float, heartbeat_s: float) -> Iterator[None]:
    """Makes this process one of its cluster for a while; enter it before jax is asked for any device.

    `purpose` is what must be the same everywhere, by name; `heartbeat_s` is after how long a silent process is lost.
    Within, an error is told, and ends the process: another that waits for this one must not wait for ever. One that
    fails because another has gone ends with the code of PeerLost. Raises as `rendezvous.meet`.
    """
    if cluster is None:
        yield
        return
    meet(cluster.address, count=cluster.count, index=cluster.index, purpose=purpose, timeout_s=timeout_s)
    with _aborts_told(cluster) as told:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.count,
            cluster.index,
            local_device_ids=cluster.devices,
            cluster_detection_method="deactivate",
            # All have come: from here on whoever is silent for too long is lost, on the way in and on the way out.
            initialization_timeout=round(max(heartbeat_s, _CONNECTING)),
            heartbeat_timeout_seconds=round(heartbeat_s),
            shutdown_timeout_seconds=round(heartbeat_s),
        )
        try:
            with _silent(cluster.index > 0), losses_named():
                yield
                wait_for_all("the end")
        except BaseException as error:
            _end(error, told)
        _part(None)


@contextlib.contextmanager
def losses_named() -> Iterator[None]:
    """Raises PeerLost for an error within that came of another process having gone."""
    try:
        yield
    except Exception as error:
        if isinstance(error, PeerLost) or jax.process_count() == 1 or not (reason := _loss(error)):
            raise
        raise PeerLost(
            f"process {jax.process_index()} of {jax.process_count()} lost another ({reason}): "
            "start all again with the same command, which goes on from the last checkpoint"
        ) from error


@contextlib.contextmanager
def _silent(silent: bool) -> Iterator[None]:
    """Leaves prints and the log to process 0; warnings stay."""
    if not silent:
        yield
        return
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _aborts_told(cluster: Cluster) -> Iterator[list[int]]:
    """Ends with the code of PeerLost, and with a record, where jax ends the process by abort().

    That is what its client does, in a thread of C++ and with no exception, when the coordinator has gone or a process
    has been silent for too long. Python's own handlers would run too late, hence one of C. Whoever puts the code of an
    error that has been told into the list that is yielded ends with that.
    """
    told: list[int] = []
    said = f"PeerLost: process {cluster.index} of {cluster.count} was aborted by its runtime, which says why above: "
    said += "most often another process was lost; start all again with the same command\n"

    def aborted(_: int) -> None:
        if told:
            os._exit(told[0])
        os.write(2, said.encode())
        failure.record_abort()
        os._exit(PeerLost.exit_code)

    prototype = ctypes.CFUNCTYPE(None, ctypes.c_int)
    handler = prototype(aborted)
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    before = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield told
    finally:
        set_handler(signal.SIGABRT, before)


def _end(error: BaseException, told: list[int]) -> NoReturn:
    """Tells the error, parts from the others if they part too, and ends the process."""
    told.append(report(error) if isinstance(error, Exception) else CommandError.exit_code)
    if not isinstance(error, PeerLost) and _part(_PARTING):
        raise SystemExit(told[0]) from error
    _leave(told[0])


def _loss(error: BaseException) -> str:
    """Returns the words in which an error, or one behind it, says that another process has gone; "" if none does."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        if isinstance(now, PeerLost | RuntimeError | ValueError) and not isinstance(now, UserError):
            text = " ".join(str(now).split())
            if found := _LOST.search(text):
                return text[max(0, found.start() - 80) : found.end() + 80].strip()
        now = now.__cause__ or now.__context__
    return ""


def _part(seconds: float | None) -> bool:
    """Whether all processes have come to their end, within so many seconds; then jax has let go of them."""
    parting = threading.Thread(target=_shut_down, daemon=True)
    parting.start()
    parting.join(seconds)
    return not parting.is_alive()


def _shut_down() -> None:
    try:
        jax.distributed.shutdown()
    except RuntimeError as error:
        logging.warning("another process ended first: %s", " ".join(str(error).split())[:200])


def _leave(code: int) -> NoReturn:
    """Ends the process at once: on the way out of Python jax would wait for those that do not come."""
    logging.flush()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def gather(name: str, value: Any) -> list[Any]:
    """Returns the `value`, fit for JSON, of every process, in their order; each waits until all have come to `name`.

    No device takes part, so that a process may wait while another compiles or reads for long.
    """
    count = jax.process_count()
    if count == 1:
        return [value]
    number = next(_meetings)
    client, place = distributed.global_state.client, f"sora_jax/{number}"
    assert client is not None
    client.key_value_set(f"{place}/{jax.process_index():08d}", json.dumps([name, value]))
    client.wait_at_barrier(place, _DAY_MS)
    found = [json.loads(text) for _, text in sorted(client.key_value_dir_get(f"{place}/"))]
    assert [other for other, _ in found] == [name] * count, f"processes are at different places: {found}"
    if is_first() and number:
        client.key_value_delete(f"sora_jax/{number - 1}/")  # whoever is here has read the last one
    return [value for _, value in found]


def from_first(name: str, make: Callable[[], Any]) -> Any:
    """Returns what `make` returns on process 0, fit for JSON, on every process; only process 0 calls it."""
    return gather(name, make() if is_first() else None)[0]


def wait_for_all(name: str) -> None:
    """Returns when every process has come here: what each wrote before can be read by all."""
    gather(name, None)


def together(jitted: Any, *, every_time: bool) -> Callable[..., Any]:
    """Returns the jitted function, which no process runs before every process has compiled it.

    An exchange between processes on CPUs waits for the others for 30 s (gloo has no other limit), and on a busy machine
    compilations end further apart. All processes must call it as often, with arguments of the same shapes; those of
    the first argument (a state, weights) are the same in every call.

    Args:
      jitted: Made by `jax.jit`.
      every_time: Whether all meet before each call: for programs between whose calls one process may have much more to
        do than another.
    """
    if jax.process_count() == 1:
        return jitted
    compiled: dict[Any, Any] = {}

    def run(first: Any, *others: Any) -> Any:
        leaves, structure = jax.tree.flatten(others)
        key = structure, *((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves)
        is_new = key not in compiled
        if is_new:
            compiled[key] = jitted.lower(first, *others).compile()
        if is_new or every_time:
            wait_for_all("a program is compiled")
        return compiled[key](first, *others)

    return run


def to_host(array: Any) -> np.ndarray:
    """Returns a whole array of which other processes may hold parts; then all of them must ask for it."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return multihost_utils.process_allgather(array, tiled=True)
