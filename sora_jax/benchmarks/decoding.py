"""What it costs to decode in a child process, against bare PyAV on the same files; part of `benchmarks.data`."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from sora_jax.benchmarks.figures import Figure
from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip
from sora_jax.data.media.file_kinds import DEMUXERS
from sora_jax.data.media.guarded import GuardedReader
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.shapes_world import ShapesWorld, WorldConfig

_REPEATS = 5
_FRAMES = 120


def decoding_figures(clips: str | None, scratch: Path, *, opens: int) -> list[Figure]:
    """Returns the speed of the guarded path over that of bare PyAV, and what many opened clips leave in memory.

    `clips` is a folder of videos; None draws and encodes a few of 256 x 256 px.
    """
    folder = draw_videos(scratch / "large", side=256, frames=64, count=4) if clips is None else Path(clips)
    with GuardedReader() as reader:
        files = readable(reader, folder)
        bare = sum(_seconds(lambda path=path: decode_bare(path)) for path in files)
        guarded = sum(_seconds(lambda path=path: reader.read_clip(path, max_frames=_FRAMES)) for path in files)
    return [
        Figure(
            name="decode_ratio",
            value=bare / guarded,
            target="at least 0.9",
            meaning=f"seconds of bare PyAV over ours, {len(files)} videos, their first {_FRAMES} frames",
        ),
        memory_figure(draw_videos(scratch / "small", side=32, frames=9, count=1), opens=opens),
    ]


def readable(reader: GuardedReader, folder: Path) -> list[Path]:
    """Returns the videos of a folder that can be decoded; UserError where there is none."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    if files := [path for path in there if path.suffix in DEMUXERS and _decodes(reader, path)]:
        return files
    raise UserError(f"{folder} holds no video that can be decoded: give a folder of videos, or leave out --clips")


def memory_figure(folder: Path, *, opens: int) -> Figure:
    """Returns what opening a clip many times leaves behind in this process and in its children (Linux)."""
    path = next(folder.iterdir())
    with GuardedReader() as reader:
        for number in range(opens):
            if number == opens // 10:
                before = resident_bytes()
            reader.read_clip(path)
        growth = (resident_bytes() - before) / 1e6
    per_thousand = growth / (0.9 * opens / 1000)
    return Figure(
        name="memory_mb_per_1000_clips",
        value=per_thousand,
        target="under 1",
        meaning=f"resident memory, decoder included, that {opens:,} opened clips leave",
    )


def decode_bare(path: Path) -> np.ndarray:
    """Returns uint8 (T, H, W, 3) as anybody would decode it."""
    with av.open(str(path)) as container:
        frames = []
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == _FRAMES:
                break
    return np.stack(frames)


def draw_videos(folder: Path, *, side: int, frames: int, count: int) -> Path:
    """Returns the folder after writing clips of the drawn world to it as mp4."""
    config = WorldConfig(
        seed=0,
        num_clips=count,
        sides=((side, side),),
        frames=(frames,),
        image_share=0.0,
        fps=(24.0,),
        max_objects=1,
        occluder=False,
        split="train",
    )
    for index, clip in enumerate(map(ShapesWorld(config).__getitem__, range(count))):
        write_clip(folder / f"{index}.mp4", clip.pixels_THWC, fps=clip.fps)
    return folder


def resident_bytes() -> int:
    """Returns the memory that this process and its children hold now."""
    own = [os.getpid()]
    for task in Path("/proc/self/task").iterdir():
        # A thread may have ended since its folder was listed; its children are then another's.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            own += map(int, (task / "children").read_text().split())
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in own)
    return pages * os.sysconf("SC_PAGE_SIZE")


def _decodes(reader: GuardedReader, path: Path) -> bool:
    try:
        reader.read_clip(path, max_frames=1)
    except BadClip:
        return False
    return True


def _seconds(call: Callable[[], object]) -> float:
    """Returns the median time of a call, after one that fills caches."""
    call()
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
