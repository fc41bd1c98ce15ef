"""The child process of `guarded.GuardedReader`: decodes one file after the other under limits that the kernel keeps.

Run as `python -m sora_jax.data.decoder PIPE PIXELS BYTES`: descriptors of a pipe for messages and of a file for pixels,
and how many bytes of addresses may be used. Messages are JSON:

    {"path", "max_frames", "max_pixels"}   a file to be decoded; the path is absolute
    {"declared": T * H * W}                of it, by its headers; some files declare nothing
    {"shape": [T, H, W, 3], "fps"}         it is decoded, the pixels are in the file for pixels
    {"reason"}                             it is not, as `BadClip` says
"""

import contextlib
import fcntl
import importlib
import json
import os
import resource
import select
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from PIL import Image

from sora_jax.data.clips import BadClip
from sora_jax.data.video_io import read_clip

_LONGEST_REASON = 200


def _serve(pipe_fd: int, pixels_fd: int, max_memory: int) -> None:
    """Says that it is ready, then answers until the parent closes the pipe."""
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.SIG_IGN)  # when to end is the parent's decision
    if sys.platform == "linux":
        _die_with_parent()
    _confine(max_memory)
    with Connection(pipe_fd) as pipe, contextlib.suppress(EOFError, ConnectionError):
        _send(pipe, {})
        while True:
            request = json.loads(pipe.recv_bytes())
            _send(pipe, _answer(request, pipe, pixels_fd, max_memory))


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
    importlib.import_module("av.subtitles.stream")
    os.dup2(1, 2)  # what FFmpeg prints; until now stderr told why this process does not start
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, lowest + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))


def _answer(request: dict[str, Any], pipe: Connection, pixels_fd: int, max_memory: int) -> dict[str, Any]:
    """Returns the reply to a request; the pixels, if any, are then in their file."""
    no_memory = {"reason": f"needs more than {max_memory / 2**30:.3g} GiB of memory to be decoded"}
    try:
        pixels_THWC, fps = read_clip(**request, declare=lambda pixels: _send(pipe, {"declared": pixels}))
        _write(pixels_fd, pixels_THWC)
    except MemoryError:
        return no_memory
    except BadClip as bad:
        return no_memory if isinstance(bad.__cause__, MemoryError) else {"reason": bad.reason}
    except Exception as error:
        # The bare reader would raise it. Here as there, it is this file that cannot be decoded.
        return {"reason": f"cannot be decoded: {type(error).__name__}: {error}"[:_LONGEST_REASON]}
    return {"shape": pixels_THWC.shape, "fps": fps}


def _write(pixels_fd: int, pixels_THWC: np.ndarray) -> None:
    data = np.ascontiguousarray(pixels_THWC).data.cast("B")
    written = 0
    while written < len(data):
        written += os.pwrite(pixels_fd, data[written:], written)


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
