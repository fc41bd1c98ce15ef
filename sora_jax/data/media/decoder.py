"""The child process of `guarded.GuardedReader`: decodes one file after the other under limits that the kernel keeps.

Run as `python -m sora_jax.data.media.decoder PIPE PIXELS BYTES`: descriptors of a pipe for messages and of memory for
pixels, and how many bytes of addresses may be used. Messages are JSON:

    {"path", and the limits of `read_clip`}   a file to be decoded; the path is absolute
    {"name", and these limits}                the same, of the bytes that are sent next
    {"declared": T * H * W}                so much is to come; none or several of these
    {"shape": [T, H, W, 3], "fps", "there"}   it is decoded, the pixels are in the memory, from its beginning; its
                                           file has so many frames, or null
    {"reason"}                             it is not, as `BadClip` says
"""

import contextlib
import fcntl
import importlib
import io
import json
import math
import mmap
import os
import pkgutil
import resource
import select
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

import av
import numpy as np
from PIL import Image

from sora_jax.data.clips import BadClip
from sora_jax.data.media.video_io import read_clip, read_stream

_LONGEST_REASON = 200
# Parts of PyAV that do something when they are imported.
_COMMANDS = ("av.__main__",)


def _serve(pipe_fd: int, pixels_fd: int, max_memory: int) -> None:
    """Says that it is ready, then answers until the parent closes the pipe."""
    if sys.platform == "linux":
        _die_with_parent()
    shared = _SharedPixels(pixels_fd)
    _confine(max_memory)
    with Connection(pipe_fd) as pipe, contextlib.suppress(EOFError, ConnectionError):
        _send(pipe, {})
        while True:
            request = json.loads(pipe.recv_bytes())
            _send(pipe, _answer(request, pipe, shared, max_memory))


def _die_with_parent() -> None:
    """Has the kernel kill this process when the other end of stdin closes, even where it hangs or is stopped."""
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(0, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:
        sys.exit()  # it has closed already


def _confine(max_memory: int) -> None:
    """Limits memory, and descriptors to one more: that of the file which is decoded."""
    # What these import when they need it; then it will be too late.
    Image.init()
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if module.name not in _COMMANDS:
            importlib.import_module(module.name)
    os.dup2(1, 2)  # what FFmpeg prints; until now stderr told why this process does not start
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, lowest + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))


class _SharedPixels:
    """The memory that pixels are decoded into, so that they need not be copied there."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._largest = 1
        self._map(1)

    def _map(self, size: int) -> None:
        # Pages that nobody writes to take no memory.
        os.ftruncate(self._descriptor, size)
        try:
            self._mapped = mmap.mmap(self._descriptor, size)
        except OSError as error:
            raise MemoryError from error

    def allocate(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns uint8 of `shape`, over this memory if it is large enough: then every array has the same bytes."""
        size = math.prod(shape)
        self._largest = max(self._largest, size)
        if len(self._mapped) < size:
            return np.empty(shape, np.uint8)  # a larger map takes a descriptor, and the file has the only one
        if os.fstat(self._descriptor).st_size < size:  # the parent gave it back
            os.ftruncate(self._descriptor, len(self._mapped))
        return np.frombuffer(self._mapped, np.uint8, size).reshape(shape)

    def fill(self, pixels_THWC: np.ndarray) -> None:
        """Copies pixels to the memory, where they are not there already; no file may be open."""
        if np.may_share_memory(pixels_THWC, np.frombuffer(self._mapped, np.uint8)):
            return
        if len(self._mapped) < pixels_THWC.nbytes:
            self._map(max(self._largest, pixels_THWC.nbytes))
        self.allocate(pixels_THWC.shape)[:] = pixels_THWC


def _answer(request: dict[str, Any], pipe: Connection, shared: _SharedPixels, max_memory: int) -> dict[str, Any]:
    """Returns the reply to a request; the pixels, if any, are then in the shared memory."""
    no_memory = {"reason": f"needs more than {max_memory / 2**30:.3g} GiB of memory to be decoded"}

    there: list[int | None] = [None]

    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        _send(pipe, {"declared": math.prod(shape[:-1])})
        return shared.allocate(shape)

    try:
        if "path" in request:
            pixels_THWC, fps = read_clip(**request, allocate=allocate, tell=there.append)
        else:
            stream = io.BytesIO(pipe.recv_bytes())
            pixels_THWC, fps = read_stream(stream, **request, allocate=allocate, tell=there.append)
        shared.fill(pixels_THWC)
    except MemoryError:
        return no_memory
    except BadClip as bad:
        return no_memory if isinstance(bad.__cause__, MemoryError) else {"reason": bad.reason}
    except Exception as error:
        # The bare reader would raise it. Here as there, it is this file that cannot be decoded.
        return {"reason": f"cannot be decoded: {type(error).__name__}: {error}"[:_LONGEST_REASON]}
    return {"shape": pixels_THWC.shape, "fps": fps, "there": there[-1]}


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
