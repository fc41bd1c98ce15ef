"""Files are decoded by a child process: what it is given comes back, and what happens to it is never our end."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax.data.clips import BadClip
from sora_jax.data.media import decoder, guarded, video_io
from sora_jax.data.media.file_kinds import MEDIA_SUFFIXES
from sora_jax.data.media.guarded import GuardedReader, ReaderPool
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.base import FolderSource, fingerprint, read_ahead


def drawn(frames: int = 5) -> np.ndarray:
    """Noise of so few levels that a GIF keeps them exactly."""
    pixels_THWC = np.random.default_rng(0).integers(0, 80, (frames, 16, 24, 1), np.uint8).repeat(3, axis=-1)
    pixels_THWC[np.arange(frames), 3:9, np.arange(frames)] = 250
    return pixels_THWC


def pid(reader: GuardedReader) -> int:
    assert reader._child is not None
    return reader._child._process.pid


def lives(process: int) -> bool:
    """Whether there is such a process; a zombie is one, too."""
    return Path(f"/proc/{process}").exists()


def wait_for_end(process: int) -> bool:
    """Waits up to ten seconds, for machines that are busy."""
    until = time.monotonic() + 10
    while lives(process) and time.monotonic() < until:
        time.sleep(0.02)
    return not lives(process)


def said(reader: GuardedReader, path: Path, **limits: int) -> str:
    with pytest.raises(BadClip) as caught:
        reader.read_clip(path, **limits)
    assert caught.value.source_id == str(path)
    return caught.value.reason


@contextlib.contextmanager
def stopped_then(process: int, *signals: int) -> Iterator[None]:
    """Stops a process, so that it cannot answer, and sends it `signals` when its parent has waited for a while."""

    def send() -> None:
        for number in signals:
            os.kill(process, number)

    os.kill(process, signal.SIGSTOP)
    timer = threading.Timer(0.3, send)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@pytest.fixture
def waited(monkeypatch) -> list[float]:
    """The seconds that each file was waited for from then on, the start of a child left out.

    A new interpreter takes as long as the machine is busy, and what is asked here is whether a death is noticed.
    """
    decode, found = guarded._Child.decode, []

    def timed(child, *request, **limits):
        began = time.monotonic()
        try:
            return decode(child, *request, **limits)
        finally:
            found.append(time.monotonic() - began)

    monkeypatch.setattr(guarded._Child, "decode", timed)
    return found


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A file that is quick to decode."""
    path = tmp_path_factory.mktemp("good") / "good.gif"
    write_clip(path, drawn(), fps=10)
    return path


@pytest.fixture(scope="module")
def reader() -> Iterator[GuardedReader]:
    """A reader that no test may break."""
    with GuardedReader() as reader:
        yield reader


def write_media(folder: Path) -> None:
    """Writes one file of each kind: whatever a decoder imports or opens late must be there for the child, too."""
    for name in ("a.mp4", "a.gif", "a.webp"):
        write_clip(folder / name, drawn(), fps=12)
    for name, codec in (("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.mpg", "mpeg2video")):
        with av.open(folder / name, "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width, stream.pix_fmt = 16, 24, "yuv420p"
            for pixels_HWC in drawn():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")))
            container.mux(stream.encode())
    image = Image.fromarray(drawn(1)[0])
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    for name in ("b.png", "b.jpg", "b.webp"):
        image.save(folder / name, exif=exif)
    image.save(folder / "b.bmp")
    image.quantize(8).save(folder / "palette.png", transparency=0)
    Image.fromarray(drawn(1)[0, ..., 0].astype(np.uint16) * 257).save(folder / "grey.png")


def test_pixels_and_rates_are_those_of_the_bare_reader(tmp_path, reader):
    write_media(tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 13
    for limits in ({}, {"max_frames": 2}):
        for path in paths:
            bare_THWC, bare_fps = video_io.read_clip(path, **limits)
            pixels_THWC, fps = reader.read_clip(path, **limits)
            np.testing.assert_array_equal(pixels_THWC, bare_THWC, err_msg=path.name)
            assert (pixels_THWC.dtype, fps) == (np.uint8, bare_fps), path.name


def test_bytes_are_decoded_as_the_file_would_be(tmp_path):
    write_clip(tmp_path / "a.mp4", np.arange(3 * 16 * 24 * 3, dtype=np.uint8).reshape(3, 16, 24, 3), fps=8.0)
    media = (tmp_path / "a.mp4").read_bytes()
    with GuardedReader() as reader:
        pixels_THWC, fps = reader.read_bytes(media, "x/a.MP4", max_frames=2)
        np.testing.assert_array_equal(pixels_THWC, video_io.read_clip(tmp_path / "a.mp4", max_frames=2)[0])
        assert fps == 8.0
        with pytest.raises(BadClip, match="has no video stream"):
            reader.read_bytes(media[:100], "b.mp4")
        np.testing.assert_array_equal(reader.read_bytes(media, "a.mp4")[0], reader.read_clip(tmp_path / "a.mp4")[0])


def test_a_child_that_does_not_read_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(guarded, "SECONDS", 1.0)
    monkeypatch.setattr(guarded, "_KILL_SECONDS", 0.2)
    with GuardedReader() as reader:
        with pytest.raises(BadClip):
            reader.read_bytes(b"", "a.mp4")
        assert reader._child is not None
        os.kill(reader._child._process.pid, signal.SIGSTOP)
        with pytest.raises(BadClip, match="the decoder no longer answers"):
            reader.read_bytes(bytes(50_000_000), "large.mp4")
        write_clip(tmp_path / "a.mp4", np.zeros((2, 16, 16, 3), np.uint8), fps=8.0)
        assert reader.read_clip(tmp_path / "a.mp4")[0].shape == (2, 16, 16, 3)


def test_clips_are_memory_of_their_own(good, reader):
    first_THWC, _ = reader.read_clip(good)
    first_THWC[:] = 7
    second_THWC, _ = reader.read_clip(good)
    np.testing.assert_array_equal(second_THWC, drawn())
    assert (first_THWC == 7).all()


def test_sizes_may_change_and_large_ones_are_not_kept(tmp_path, good, reader, monkeypatch):
    monkeypatch.setattr(guarded, "KEPT_BYTES", 10_000)
    write_clip(tmp_path / "large.gif", drawn(12), fps=10)
    for path, frames in ((good, 5), (tmp_path / "large.gif", 12), (good, 5), (tmp_path / "large.gif", 12)):
        np.testing.assert_array_equal(reader.read_clip(path)[0], drawn(frames))
        assert reader._child is not None
        assert (os.fstat(reader._child._pixels_fd).st_size > 0) == (frames == 5)


def test_more_pixels_than_there_is_memory_for_are_copied_once():
    descriptor = os.memfd_create("pixels")
    shared = decoder._SharedPixels(descriptor)
    pixels_THWC = shared.allocate((5, 16, 24, 3))  # declared, and too little
    pixels_THWC[:] = drawn()
    for frames in (9, 7):
        pixels_THWC = shared.allocate((12, 16, 24, 3))[:frames]  # seven are fewer than before
        pixels_THWC[:] = drawn(frames)
        shared.fill(pixels_THWC)
        assert os.pread(descriptor, pixels_THWC.nbytes, 0) == pixels_THWC.tobytes()
        os.ftruncate(descriptor, 0)
    assert np.may_share_memory(pixels_THWC, shared.allocate((1, 16, 24, 3))), "the second time they lie there already"
    del pixels_THWC
    os.close(descriptor)


def test_reasons_are_those_of_the_bare_reader(tmp_path, monkeypatch, reader, good):
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    (tmp_path / "a.jpg").write_text("hello")
    (tmp_path / "a.pdf").write_text("hello")
    (tmp_path / "a.gif").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    (tmp_path / "cut.gif").write_bytes(good.read_bytes()[:-400])
    (tmp_path / "\udcff.png").write_bytes(b"its name is not utf-8")
    os.mkfifo(tmp_path / "pipe.mp4")
    paths = [*tmp_path.iterdir(), tmp_path / "gone.gif"]
    reader.read_clip(good)
    monkeypatch.chdir(tmp_path)  # the child was started elsewhere
    for path in (*paths, Path("a.mp4")):
        with pytest.raises(BadClip) as bare:
            video_io.read_clip(path)
        assert said(reader, path) == bare.value.reason
    assert "max_pixels = 99" in said(reader, good, max_pixels=99)


def test_a_hang_ends_at_the_deadline_and_the_next_file_decodes(good):
    with GuardedReader(seconds=1) as reader:
        reader.read_clip(good)
        hung = pid(reader)
        started = time.monotonic()
        with stopped_then(hung):
            assert said(reader, good).startswith("the decoder hung for 1 s")
        assert 1 <= time.monotonic() - started < 5
        assert not lives(hung)
        np.testing.assert_array_equal(reader.read_clip(good)[0], drawn())


def played(reader: GuardedReader, good: Path, monkeypatch: pytest.MonkeyPatch):
    """The reader's child and, to answer in its place, the other end of its pipe."""
    reader.read_clip(good)
    child = reader._child
    assert child is not None
    ours, theirs = guarded.Pipe()
    monkeypatch.setattr(child, "_pipe", ours)
    return child, theirs


@pytest.mark.parametrize(("seconds", "declared", "answers"), [(0.2, 5_000_000, True), (0.2, 10, False)])
def test_what_headers_declare_extends_the_deadline(good, monkeypatch, seconds, declared, answers):
    # A child played by a thread: it says how much there is, takes half a second and answers.
    with GuardedReader() as reader:
        child, theirs = played(reader, good, monkeypatch)

        def play() -> None:
            theirs.recv_bytes()
            theirs.send_bytes(json.dumps({"declared": declared}).encode())
            time.sleep(0.5)
            theirs.send_bytes(json.dumps({"reason": "it is only a play"}).encode())

        thread = threading.Thread(target=play)
        thread.start()
        with pytest.raises((guarded._Refused, guarded._Lost)) as caught:
            child.decode({"max_pixels": 2**30}, None, seconds=seconds)
        thread.join()
        assert str(caught.value) == ("it is only a play" if answers else "hung for 0.2 s")


def test_a_file_whose_decoder_is_killed_once_is_not_lost(good, waited):
    with GuardedReader() as reader:
        reader.read_clip(good)
        for number in (signal.SIGKILL, signal.SIGSEGV):
            crashed = pid(reader)
            waited.clear()
            with stopped_then(crashed, number, signal.SIGCONT):
                np.testing.assert_array_equal(reader.read_clip(good)[0], drawn())
            assert len(waited) == 2, "by the child that was killed, and by the next"
            assert sum(waited) < 5
            assert not lives(crashed)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSEGV, 3])
def test_a_file_that_ends_each_decoder_is_named_in_seconds_and_the_next_decodes(good, monkeypatch, waited, end):
    decode, crashed = guarded._Child.decode, []

    def crash(child, request, media, **options):
        crashed.append(child._process.pid)
        if isinstance(end, signal.Signals):
            os.kill(child._process.pid, end)
            child._process.wait()
        else:
            child._process.kill()
            child._process.wait()
            child._process.returncode = end
        return decode(child, request, media, **options)

    with GuardedReader() as reader:
        with monkeypatch.context() as patched:
            patched.setattr(guarded._Child, "decode", crash)
            how = f"signal {end:d}" if isinstance(end, signal.Signals) else f"exit code {end}"
            assert said(reader, good) == f"the decoder crashed ({how})"
            assert sum(waited) < 5
        assert len(set(crashed)) == len(waited) == 2
        assert not any(map(lives, crashed))
        np.testing.assert_array_equal(reader.read_clip(good)[0], drawn())


def test_a_pool_whose_children_are_killed_loses_and_repeats_no_clip(tmp_path, monkeypatch):
    for number in range(12):
        write_clip(tmp_path / f"{number:02d}.gif", drawn(2 + number), fps=10)
    source = FolderSource(tmp_path, captions_required=False)
    decode, killed, shared = guarded._Child.decode, [], len(os.listdir("/dev/shm"))

    def kill(child, request, media, **options):
        number = int(Path(request["path"]).stem)
        if number == 7 or (number % 4 == 0 and number not in killed):
            killed.append(number)
            os.kill(child._process.pid, signal.SIGKILL)
        return decode(child, request, media, **options)

    def read(index: int) -> tuple[int, int | str]:
        try:
            return index, len(source[index].pixels_THWC)
        except BadClip as bad:
            return index, bad.reason

    monkeypatch.setattr(guarded._Child, "decode", kill)
    with read_ahead(read, range(12), readers=2) as found:
        rows = list(found)
    assert rows == [(n, 2 + n if n != 7 else "the decoder crashed (signal 9)") for n in range(12)]
    assert sorted(killed) == [0, 4, 7, 7, 8]
    assert len(os.listdir("/dev/shm")) <= shared


def test_a_death_between_files_is_no_fault_of_the_next(good):
    with GuardedReader() as reader:
        reader.read_clip(good)
        os.kill(pid(reader), signal.SIGKILL)
        os.waitid(os.P_PID, pid(reader), os.WEXITED | os.WNOWAIT)
        np.testing.assert_array_equal(reader.read_clip(good)[0], drawn())


def test_an_answer_without_sense_is_a_crash(good, monkeypatch):
    with GuardedReader() as reader:
        child, theirs = played(reader, good, monkeypatch)
        for answer in (b"\xff", b"[]", b"{}", b'{"shape": [9999999, 9, 9, 3], "fps": 1}'):
            theirs.send_bytes(answer)
            with pytest.raises(guarded._Lost, match="without sense"):
                child.decode({"max_pixels": 2**30}, None, seconds=1)
        theirs.send_bytes(b"[]")
        assert said(reader, good) == "the decoder gave an answer without sense"
        np.testing.assert_array_equal(reader.read_clip(good)[0], drawn())


def test_an_interrupt_does_not_shift_the_answers(tmp_path, good, monkeypatch):
    write_clip(tmp_path / "other.gif", drawn(9), fps=10)
    with GuardedReader() as reader:
        reader.read_clip(good)
        child = reader._child
        assert child is not None

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(child, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            reader.read_clip(tmp_path / "other.gif")
        np.testing.assert_array_equal(reader.read_clip(good)[0], drawn())


def test_memory_is_limited(tmp_path, good):
    # Two frames, of which one is held for ten minutes: 900 MB when it is repeated.
    frames = [Image.fromarray(np.full((100, 100, 3), level, np.uint8)) for level in (0, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[20, 600_000])
    with GuardedReader(max_memory=640 * 2**20) as reader:
        assert said(reader, tmp_path / "a.gif") == "needs more than 0.625 GiB of memory to be decoded"
        alive = pid(reader)
        np.testing.assert_array_equal(reader.read_clip(good)[0], drawn())
        assert pid(reader) == alive


def test_the_child_can_open_one_file_only(reader, good):
    reader.read_clip(good)
    limits = Path(f"/proc/{pid(reader)}/limits").read_text()
    (limit,) = {int(line.split()[3]) for line in limits.splitlines() if line.startswith("Max open files")}
    used = {int(path.name) for path in Path(f"/proc/{pid(reader)}/fd").iterdir()}
    assert len(set(range(limit)) - used) == 1


def test_the_child_knows_no_jax_and_is_silent(reader, good):
    reader.read_clip(good)
    libraries = Path(f"/proc/{pid(reader)}/maps").read_text()
    assert "/numpy/" in libraries
    assert "/jaxlib/" not in libraries
    outputs = {os.readlink(f"/proc/{pid(reader)}/fd/{number}") for number in (1, 2)}
    assert outputs == {os.devnull}


def test_the_child_ends_with_its_reader(good):
    closed, dropped = GuardedReader(), GuardedReader()
    for each in (closed, dropped):
        each.read_clip(good)
    children = pid(closed), pid(dropped)
    assert all(map(lives, children))
    before = len(os.listdir("/proc/self/fd"))
    closed.close()
    assert not lives(children[0])
    closed.close()
    del each, dropped
    assert not lives(children[1])
    assert len(os.listdir("/proc/self/fd")) <= before - 6


def test_interrupts_are_for_the_parent(reader, good):
    reader.read_clip(good)
    child = pid(reader)
    assert os.getpgid(child) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(child, number)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    reader.read_clip(good)
    assert pid(reader) == child


def test_a_child_that_hangs_dies_when_nobody_holds_its_stdin(good):
    reader = GuardedReader()
    reader.read_clip(good)
    child = reader._child
    assert child is not None
    os.kill(pid(reader), signal.SIGSTOP)  # as it is with a parent that was killed, but without the kernel's SIGCONT
    child.release()
    assert child._process.wait(10) == -signal.SIGKILL


PARENT = textwrap.dedent("""
    import os, signal, sys
    from sora_jax.data.media.guarded import GuardedReader

    reader = GuardedReader()
    reader.read_clip(sys.argv[1])
    child = reader._child._process.pid
    for use in (False, True) if sys.argv[2] == "fork" else ():
        if os.fork() == 0:  # it must neither use the child of its parent, nor end it, nor keep it alive
            if use:
                assert len(reader.read_clip(sys.argv[1])[0]) == 5
                assert reader._child._process.pid != child
                reader.close()
            os.write(1, b"forked\\n")  # at once: the others write to the same pipe
            signal.pause()
        reader.read_clip(sys.argv[1])
        assert reader._child._process.pid == child
    if sys.argv[2] == "stop":
        os.kill(child, signal.SIGSTOP)
    os.write(1, f"{child}\\n".encode())
    if sys.argv[2] != "exit":
        signal.pause()
""")


@pytest.mark.parametrize("way", ["exit", "stop", "fork"])
def test_the_child_never_outlives_its_parent(good, way):
    command = [sys.executable, "-c", PARENT, str(good), way]
    environment = os.environ | {"PYTHONPATH": str(Path(guarded.__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, process_group=0) as parent:
        try:
            assert parent.stdout is not None
            lines = [parent.stdout.readline().strip() for _ in range(3 if way == "fork" else 1)]
            (child,) = (int(line) for line in lines if line != "forked")
            if way != "exit":
                assert lives(child)
                parent.kill()
            assert wait_for_end(child)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


def test_threads_share_a_reader(tmp_path, reader):
    for frames in (2, 9):
        write_clip(tmp_path / f"{frames}.gif", drawn(frames), fps=10)
    wrong = []

    def read(frames: int) -> None:
        for _ in range(20):
            pixels_THWC, _ = reader.read_clip(tmp_path / f"{frames}.gif")
            if not np.array_equal(pixels_THWC, drawn(frames)):
                wrong.append(frames)

    threads = [threading.Thread(target=read, args=(frames,)) for frames in (2, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_children_are_replaced_after_many_files(good, monkeypatch):
    monkeypatch.setattr(guarded, "FILES_PER_CHILD", 2)
    with GuardedReader() as reader:
        children = []
        for _ in range(4):
            reader.read_clip(good)
            children.append(pid(reader))
        assert children[0] == children[1] != children[2] == children[3]
        assert not lives(children[0])


def test_a_child_that_cannot_start_is_no_fault_of_a_file(good, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with GuardedReader() as reader, pytest.raises(RuntimeError, match=r"does not start: it crashed \(exit code 1\)"):
        reader.read_clip(good)


def test_a_child_that_is_killed_as_it_starts_is_replaced(good, monkeypatch):
    start, killed = guarded._start, []

    def kill(*arguments):
        process = start(*arguments)
        if len(killed) < 2:
            killed.append(process.pid)
            process.kill()
        return process

    monkeypatch.setattr(guarded, "_start", kill)
    with GuardedReader() as reader:
        np.testing.assert_array_equal(reader.read_clip(good)[0], drawn())
    assert len(killed) == 2
    monkeypatch.setattr(guarded, "_STARTS", 1)
    killed.clear()
    with GuardedReader() as reader, pytest.raises(RuntimeError, match=r"does not start: it crashed \(signal 9\)"):
        reader.read_clip(good)


def test_sources_decode_in_a_child_and_survive_pickling(good):
    source = FolderSource(good.parent, captions_required=False)
    np.testing.assert_array_equal(source[0].pixels_THWC, drawn())
    (reader,) = source._reader._idle
    copy = pickle.loads(pickle.dumps(source))
    assert copy._reader._idle == []
    np.testing.assert_array_equal(copy[0].pixels_THWC, drawn())
    assert pid(copy._reader._idle[0]) != pid(reader)
    assert fingerprint(copy) == fingerprint(source)


def test_threads_decode_side_by_side_and_one_after_the_other_in_the_same_child(good, tmp_path):
    pool = ReaderPool()
    for _ in range(3):
        pool.read_clip(good)
    assert len(pool._idle) == 1
    both = threading.Barrier(2, timeout=60)

    def together(_):
        both.wait()
        with pool._borrowed() as reader:
            both.wait()
            return reader.read_clip(good)[0]

    with ThreadPoolExecutor(2) as threads:
        for pixels in threads.map(together, range(2)):
            np.testing.assert_array_equal(pixels, drawn())
    assert len({pid(reader) for reader in pool._idle}) == 2
    (tmp_path / "torn.mp4").write_bytes(b"not a video")
    with pytest.raises(BadClip):
        pool.read_clip(tmp_path / "torn.mp4")
    assert len(pool._idle) == 2, "a bad clip does not cost its reader"


def test_settings_survive_pickling():
    copy = pickle.loads(pickle.dumps(GuardedReader(seconds=1, max_memory=2**30)))
    assert (copy._seconds, copy._max_memory) == (1, 2**30)


SHARED = Path(os.environ.get("SORA_JAX_CLIPS", "/nonexistent")) / "damaged"


def outcome(read: Callable[..., tuple[np.ndarray, float]], path: Path) -> tuple[np.ndarray, float] | str:
    try:
        return read(path, max_frames=6)
    except BadClip as bad:
        return bad.reason


@pytest.mark.skipif(not SHARED.is_dir(), reason="SORA_JAX_CLIPS names no folder of real and damaged clips")
def test_damaged_clips_give_the_reasons_of_the_bare_reader(reader):
    paths = sorted(path for path in SHARED.iterdir() if path.suffix in MEDIA_SUFFIXES)
    assert len(paths) > 30
    refused = 0
    for path in paths:
        bare, ours = (outcome(read, path) for read in (video_io.read_clip, reader.read_clip))
        refused += isinstance(bare, str)
        if isinstance(bare, str) or isinstance(ours, str):
            assert ours == bare, path.name
        else:
            np.testing.assert_array_equal(ours[0], bare[0], err_msg=path.name)
            assert ours[1] == bare[1]
    assert 0 < refused < len(paths)
