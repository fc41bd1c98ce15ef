"""Decoding in a child process: a file that hangs or crashes the decoder costs itself, never the run.

FFmpeg and Pillow are C code that reads what strangers wrote. The child (`decoder.py`) is a fresh interpreter that knows
no jax, never a fork, since this process has threads and devices. It has limits of memory and of descriptors: with the
file open it can open neither another one nor a socket. On Linux the kernel kills it when its parent is gone.

Messages are JSON, since unpickling is to trust the sender. Pixels are decoded into one piece of shared memory, the
same for each clip, and copied out of it: pages that are written again cost less than fresh ones.
"""

import contextlib
import json
import math
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing.connection import Pipe
from typing import Any, Unpack

import numpy as np

from sora_jax.data.clips import BadClip
from sora_jax.data.media import decoder
from sora_jax.data.media.pictures import MAX_PIXELS, ReadOptions, Tell, tell_nobody

SECONDS = 25.0
SLOWEST_PIXELS = 5e6  # a second; a tenth of what a core decodes
MAX_MEMORY = 8 * 2**30  # bytes of addresses: MAX_PIXELS pixels twice, and the decoder
FILES_PER_CHILD = 1000  # what decoders leak is given back after so many
KEPT_BYTES = 2**27  # of shared memory between clips
_START_SECONDS = 120.0
_STARTS = 5
_KILL_SECONDS = 10.0
_LONGEST_MESSAGE = 2**16


class GuardedReader:
    """`video_io.read_clip` behind a process that may die instead of this one.

    A file may take `seconds`, and one second more for every `SLOWEST_PIXELS` pixels that its headers declare; then the
    child is killed. Where the child crashes, the file is tried once more in another one. It may use `max_memory` bytes
    of addresses. The child starts with the first file, is replaced when it dies and after `FILES_PER_CHILD` files, and
    ends with `close`, with the reader or with this process, whichever is first. Threads that share a reader take turns.
    A pickled or forked reader starts a child of its own.
    """

    def __init__(self, *, seconds: float = SECONDS, max_memory: int = MAX_MEMORY):
        self._seconds = seconds
        self._max_memory = max_memory
        self._start_childless()

    def _start_childless(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._finalizer: weakref.finalize | None = None
        _READERS.add(self)

    def read_clip(
        self, path: str | os.PathLike, *, tell: Tell = tell_nobody, **options: Unpack[ReadOptions]
    ) -> tuple[np.ndarray, float]:
        """Returns what `video_io.read_clip` does: uint8 (T, H, W, 3) and frames per second.

        Raises `BadClip` as that does, with the same reasons, and where the decoder hung, crashed or ran out of memory;
        `RuntimeError` where no child can be started, which is no fault of the file.
        """
        name = os.fspath(path)
        return self._read(name, {"path": os.path.join(os.getcwd(), name)}, options, media=None, tell=tell)

    def read_bytes(
        self, media: bytes, name: str, *, tell: Tell = tell_nobody, **options: Unpack[ReadOptions]
    ) -> tuple[np.ndarray, float]:
        """Returns what `read_clip` does, of a media file in memory; the ending of `name` chooses the decoder."""
        return self._read(name, {"name": name}, options, media=media, tell=tell)

    def _read(
        self, name: str, clip: dict[str, str], options: ReadOptions, *, media: bytes | None, tell: Tell
    ) -> tuple[np.ndarray, float]:
        request: dict[str, Any] = {**clip, "max_frames": None, "max_pixels": MAX_PIXELS, **options}
        assert request["max_frames"] is None or request["max_frames"] > 0, request
        with self._lock:
            try:
                return self._decode(request, media, tell)
            except _Refused as refused:
                raise BadClip(name, str(refused)) from refused
            except _Lost as lost:
                self._end_child()
                raise BadClip(name, f"the decoder {lost}") from lost
            except BaseException:
                # Such as an interrupt: the answer that is still to come would be taken for that of the next file.
                self._end_child()
                raise

    def _decode(self, request: dict[str, Any], media: bytes | None, tell: Tell) -> tuple[np.ndarray, float]:
        try:
            return self._living_child().decode(request, media, seconds=self._seconds, tell=tell)
        except _Crashed:
            # A machine short of memory kills whom it likes; a file that is to blame does it again.
            self._end_child()
            return self._living_child().decode(request, media, seconds=self._seconds, tell=tell)

    def close(self) -> None:
        """Ends the child. A further file would start another one."""
        with self._lock:
            self._end_child()

    def __enter__(self) -> "GuardedReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_seconds": self._seconds, "_max_memory": self._max_memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_childless()

    def _living_child(self) -> "_Child":
        if self._child is not None and (self._child.files >= FILES_PER_CHILD or not self._child.alive()):
            self._end_child()
        if self._child is None:
            self._child = _start_child(max_memory=self._max_memory)
            # Unlike __del__ this also runs at exit.
            self._finalizer = weakref.finalize(self, self._child.end)
        return self._child

    def _end_child(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._child = self._finalizer = None

    def after_fork(self) -> None:
        """Gives up, in a forked process, the parent's child: holding its pipes would keep it alive."""
        if self._child is not None and self._finalizer is not None:
            self._finalizer.detach()
            self._child.release()
        self._start_childless()


class ReaderPool:
    """As many readers as threads ask at the same time; each is kept, with its child, for whoever asks next."""

    def __init__(self) -> None:
        self._idle: list[GuardedReader] = []

    def read_clip(
        self, path: str | os.PathLike, *, tell: Tell = tell_nobody, **options: Unpack[ReadOptions]
    ) -> tuple[np.ndarray, float]:
        """Returns what `GuardedReader.read_clip` does."""
        with self._borrowed() as reader:
            return reader.read_clip(path, tell=tell, **options)

    def read_bytes(
        self, media: bytes, name: str, *, tell: Tell = tell_nobody, **options: Unpack[ReadOptions]
    ) -> tuple[np.ndarray, float]:
        """Returns what `GuardedReader.read_bytes` does."""
        with self._borrowed() as reader:
            return reader.read_bytes(media, name, tell=tell, **options)

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[GuardedReader]:
        # Taking from a list, and giving back to its end, are single steps for threads.
        try:
            reader = self._idle.pop()
        except IndexError:
            reader = GuardedReader()
        try:
            yield reader
        finally:
            self._idle.append(reader)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return ReaderPool, ()


_READERS: "weakref.WeakSet[GuardedReader]" = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [reader.after_fork() for reader in list(_READERS)])


class _Refused(Exception):
    """The reason that the child gave for not decoding a file."""


class _Lost(Exception):
    """What happened to the child, which can no longer be used."""


class _Crashed(_Lost):
    """It ended by itself, or was killed by a signal."""

    def __init__(self, code: int):
        self.killed = code < 0
        super().__init__(f"crashed (signal {-code})" if self.killed else f"crashed (exit code {code})")


class _Child:
    """The child process as its parent sees it."""

    def __init__(self, *, max_memory: int):
        self.files = 0
        self._mapped: mmap.mmap | None = None
        with contextlib.ExitStack() as stack:
            self._pipe, theirs = Pipe()
            stack.enter_context(self._pipe)
            _limit_sending(self._pipe.fileno())
            self._pixels_fd = _anonymous_file()
            stack.callback(os.close, self._pixels_fd)
            with theirs:
                self._process = _start(theirs.fileno(), self._pixels_fd, max_memory)
            assert self._process.stdin is not None
            stack.enter_context(self._process.stdin)
            self._resources = stack.pop_all()
        try:
            self._receive(_START_SECONDS, since=time.monotonic())
        except _Lost:
            self.end()
            raise

    def alive(self) -> bool:
        """Returns whether the process runs."""
        return self._process.poll() is None

    def decode(
        self, request: dict[str, Any], media: bytes | None, *, seconds: float, tell: Tell = tell_nobody
    ) -> tuple[np.ndarray, float]:
        """Returns pixels and rate; raises `_Refused`, or `_Lost` when the child is of no further use."""
        self.files += 1
        started = time.monotonic()
        try:
            self._pipe.send_bytes(json.dumps(request).encode())
            if media is not None:
                self._pipe.send_bytes(media)
            reply = self._receive(seconds, since=started)
            while "declared" in reply:
                allowed = seconds + min(reply["declared"], request["max_pixels"]) / SLOWEST_PIXELS
                reply = self._receive(allowed, since=started)
            if "reason" in reply:
                raise _Refused(reply["reason"])
            if reply["there"] is not None:
                tell(int(reply["there"]))
            return self._copy_out(reply["shape"]), reply["fps"]
        except OSError as error:
            raise self._loss() from error
        except (LookupError, TypeError, ValueError) as error:
            raise _Lost("gave an answer without sense") from error

    def _receive(self, seconds: float, *, since: float) -> dict[str, Any]:
        """Returns the next message, waiting for it until `seconds` after `since`, a monotonic time."""
        if not self._pipe.poll(max(0.0, since + seconds - time.monotonic())):
            raise _Lost(f"hung for {seconds:.3g} s")
        try:
            return json.loads(self._pipe.recv_bytes(_LONGEST_MESSAGE))
        except (EOFError, OSError) as error:
            raise self._loss() from error

    def _loss(self) -> _Lost:
        """Returns of what the child died, if it did."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_KILL_SECONDS)
            return _Crashed(code)
        return _Lost("no longer answers")

    def _copy_out(self, shape: list[int]) -> np.ndarray:
        """Returns uint8 of `shape` from the shared memory, as memory of its own."""
        size = math.prod(shape)
        if self._mapped is None or len(self._mapped) < size:
            # A map keeps a descriptor: were clips maps themselves, a cache of many would use them all up.
            self._mapped = mmap.mmap(self._pixels_fd, os.fstat(self._pixels_fd).st_size, prot=mmap.PROT_READ)
        pixels_THWC = np.frombuffer(self._mapped, np.uint8, size).reshape(shape).copy()
        if size > KEPT_BYTES:
            self._mapped = None
            os.ftruncate(self._pixels_fd, 0)
        return pixels_THWC

    def end(self) -> None:
        """Kills the process and waits for it, so that no zombie stays."""
        self._process.kill()
        # One that is stuck in a file system that does not answer dies later.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_SECONDS)
        self.release()

    def release(self) -> None:
        """Closes what this process holds of the child."""
        self._mapped = None
        self._resources.close()


def _start_child(*, max_memory: int) -> _Child:
    """Returns a child that is ready; one that is killed before it was, as by a machine short of memory, is replaced."""
    for left in reversed(range(_STARTS)):
        try:
            return _Child(max_memory=max_memory)
        except _Lost as lost:
            if not (left and isinstance(lost, _Crashed) and lost.killed):
                raise RuntimeError(f"the process that decodes media files does not start: it {lost}") from lost
    raise AssertionError(_STARTS)


def _limit_sending(descriptor: int) -> None:
    """Lets nobody wait for ever to send to a child that does not read."""
    with socket.socket(fileno=os.dup(descriptor)) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(SECONDS), 0))


def _anonymous_file() -> int:
    """Returns the descriptor of memory that processes can share; of a file without a name where there is no such."""
    if sys.platform == "linux":
        return os.memfd_create("pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _start(pipe_fd: int, pixels_fd: int, max_memory: int) -> subprocess.Popen:
    """Returns the started child, which finds the package where this process did."""
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    # A terminal sends Ctrl-C to a whole group of processes, and some schedulers send theirs to every single one. What
    # they mean is this process, which may have to decode on until it has saved. The child inherits what is blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", decoder.__name__, *map(str, (pipe_fd, pixels_fd, max_memory))],
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends
            stdout=subprocess.DEVNULL,
            pass_fds=(pipe_fd, pixels_fd),
            env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},  # threads would only take addresses
            process_group=0,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
