"""A rendezvous before `jax.distributed` starts, so that a missing process, or one of another run, is reported by name.

When a process is late, jax itself ends all of them by a signal. Here process 0 first listens on the coordinator's port,
which jax takes over afterwards; each other process sends its number and waits for the answer. A message is a JSON
object on one line.
"""

import contextlib
import hashlib
import json
import socket
import time
from typing import Any

from sora_jax.core.errors import PeerLost, UserError

# Between attempts to reach process 0, and for a caller to say who it is; seconds.
_PAUSE, _HELLO = 0.2, 5.0
# Process 0 speaks first when the time is up: what it knows is worth waiting for.
_GRACE = 2.0
_LONGEST_LINE = 65536


def meet(address: tuple[str, int], *, count: int, index: int, purpose: dict[str, Any], timeout_s: float) -> None:
    """Returns when all of `count` processes have come.

    Args:
      address: Host and port of process 0.
      count: Processes.
      index: Number of this one, from 0.
      purpose: What they come together for, by name, fit for JSON: the same everywhere.
      timeout_s: How long to wait.

    Raises:
      PeerLost: a process did not come in time; the message names which.
      UserError: the processes do not belong together, or the port is taken.
    """
    until = time.monotonic() + timeout_s
    digests = {name: hashlib.sha256(json.dumps(value).encode()).hexdigest() for name, value in purpose.items()}
    mine = {"count": count, "index": index, "purpose": digests}
    if index == 0:
        _receive_all(address[1], mine, until, timeout_s)
    else:
        _call(address, mine, until, timeout_s)


def _receive_all(port: int, mine: dict[str, Any], until: float, timeout_s: float) -> None:
    come: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(port))
        while len(come) < mine["count"] - 1:
            listener.settimeout(max(until - time.monotonic(), 0.001))
            try:
                caller = stack.enter_context(listener.accept()[0])
            except TimeoutError:
                missing = [str(number) for number in range(1, mine["count"]) if number not in come]
                lost = (
                    f"{len(missing)} of {mine['count']} processes did not come to port {port} within {timeout_s:g} s: "
                    f"process {', '.join(missing)}; start them within that time, or allow more with --join_timeout"
                )
                _answer(come.values(), lost=lost)
                raise PeerLost(lost) from None
            said = _read(caller, _HELLO)
            if said is None or not mine.keys() <= said.keys():
                caller.close()  # somebody else
                continue
            try:
                _check(said, mine, come)
            except UserError as error:
                _answer([*come.values(), caller], mistake=str(error))
                raise
            come[said["index"]] = caller
            if len(come) == mine["count"] - 1:  # who has gone meanwhile will come again, or be missed here
                come = {number: other for number, other in come.items() if not _is_gone(other)}
        _answer(come.values())


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=4096)
    except (OSError, OverflowError) as error:
        raise UserError(f"process 0 cannot listen at port {port} ({error}): give another in --coordinator") from error


def _check(said: dict[str, Any], mine: dict[str, Any], come: dict[int, socket.socket]) -> None:
    """Raises UserError where a caller does not belong here; one that came before and has gone may come again."""
    index, count = said["index"], said["count"]
    if count != mine["count"]:
        raise UserError(
            f"process {index} was started with --process_count={count} and process 0 with {mine['count']}: "
            "give all processes the same"
        )
    for name, value in mine["purpose"].items():
        if said["purpose"].get(name) != value:
            raise UserError(f"process {index} was started with another {name} than process 0: give all the same")
    if index == 0 or (index in come and not _is_gone(come[index])):
        raise UserError(f"two processes were started with --process_index={index}: give each its own, from 0 on")


def _is_gone(caller: socket.socket) -> bool:
    caller.setblocking(False)
    try:
        return caller.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        caller.setblocking(True)


def _call(address: tuple[str, int], mine: dict[str, Any], until: float, timeout_s: float) -> None:
    host, port = address
    while True:
        reason = "it is not there"
        try:
            with socket.create_connection(address, timeout=max(until - time.monotonic(), _PAUSE)) as caller:
                caller.sendall(json.dumps(mine).encode() + b"\n")
                answer = _read(caller, max(until - time.monotonic(), 0) + _GRACE)
        except OSError as error:
            answer, reason = None, error.strerror or str(error)
        if answer is not None:
            if "mistake" in answer:
                raise UserError(answer["mistake"])
            if "lost" in answer:
                raise PeerLost(answer["lost"])
            return
        if time.monotonic() > until:
            raise PeerLost(
                f"process 0 did not answer process {mine['index']} at {host}:{port} within {timeout_s:g} s ({reason}): "
                "start it within that time, correct --coordinator, or allow more with --join_timeout"
            )
        time.sleep(_PAUSE)


def _answer(callers: Any, **words: str) -> None:
    for caller in callers:
        with contextlib.suppress(OSError):  # one that has gone hears nothing; jax will miss it
            caller.sendall(json.dumps(words).encode() + b"\n")


def _read(caller: socket.socket, timeout_s: float) -> dict[str, Any] | None:
    """Returns the message that comes within `timeout_s`; None where none, or something else, comes."""
    until, line = time.monotonic() + timeout_s, b""
    try:
        while not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
            caller.settimeout(max(until - time.monotonic(), 0.001))
            part = caller.recv(4096)
            if not part:
                return None
            line += part
        said = json.loads(line)
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None
