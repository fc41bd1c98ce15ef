"""Damaged videos, and decoders that die or hang."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sora_jax.benchmarks.decoding import draw_videos
from sora_jax.benchmarks.drills.bench import Bench, Running
from sora_jax.benchmarks.drills.registry import Result, Tally, drill
from sora_jax.data.media import decoder
from sora_jax.data.shards.prepared import PreparedSet

# Of ten clips one is damaged.
_ONE_IN = 10
# These decode, but to ruined or missing pictures, or are smaller than a token.
_OF_NO_USE = {"bitflips.mp4", "truncated_50pct.mkv", "one_pixel_1x1.mp4", "rgb_2x2.mp4"}
# Seconds until a decoder that died, or that hangs, must be replaced, and until none may be left of a killed run.
_DEAD, _HUNG, _ORPHANED = 5.0, 30.0, 5.0


def folder_keys(folder: Path) -> dict[str, Any]:
    """Returns what the config of a run on a folder of clips has besides."""
    # Fitted into the short rows of the small run, many clips are single frames.
    windows = {"stages__autoencoder__crops__buckets": ((1, 16, 16, 8),)}
    return {"data__source": "folder", "data__path": str(folder), **windows}


def draw_good(folder: Path, count: int) -> set[str]:
    """Draws so many clips with captions into a new folder, and returns their names."""
    folder.mkdir(parents=True)
    return {path.name for path in draw_videos(folder, side=64, frames=9, count=count).iterdir()}


def write_captions(folder: Path) -> None:
    """Gives every file of a folder a caption."""
    names = sorted(path.name for path in folder.iterdir())
    lines = [json.dumps({"file": name, "caption": f"the clip {name}"}) for name in names]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def damage(folder: Path, whole: Path) -> set[str]:
    """Writes files that are no usable clips, from a `whole` one, and returns their names."""
    content = whole.read_bytes()
    frames = list(draw_videos(folder.with_name(f"{folder.name}_pictures"), side=64, frames=9, count=1).iterdir())
    files = {
        "empty.mp4": b"",
        "text.mp4": b"this is not a video\n" * 40,
        "half.mp4": content[: len(content) // 2],
        "head.mp4": content[:64],
        "noise.avi": bytes(range(256)) * 64,
        "list.mp4": f"ffconcat version 1.0\nfile {whole.name}\n".encode(),
        "playlist.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{whole.name}\n#EXT-X-ENDLIST\n".encode(),
        "cut.png": b"\x89PNG\r\n\x1a\n" + content[:100],
        "other.mkv": frames[0].read_bytes()[:200],
    }
    for name, value in files.items():
        (folder / name).write_bytes(value)
    return {*files}


def heap(bench: Bench) -> tuple[Path, set[str]]:
    """Returns a folder of clips of which one in ten is of no use, and the names of these."""
    folder = bench.new("heap")
    whole = draw_videos(bench.new("whole"), side=64, frames=9, count=1) / "0.mp4"
    folder.mkdir()
    useless = damage(folder, whole)
    if bench.clips is not None:
        lines = (Path(bench.clips) / "damaged" / "expected.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        useless |= {row["file"] for row in rows if not row["decodes"]} | _OF_NO_USE
        captions = (Path(bench.clips) / "real" / "captions.jsonl").read_text().splitlines()
        places = {row["file"]: "damaged" for row in rows} | {json.loads(line)["file"]: "real" for line in captions}
        for name, place in places.items():
            shutil.copyfile(Path(bench.clips) / place / name, folder / name)
    missing = _ONE_IN * len(useless) - len(list(folder.iterdir()))
    draw_videos(folder, side=64, frames=9, count=missing)
    write_captions(folder)
    return folder, useless


def prepared_names(workdir: Path) -> set[str]:
    """Returns the names of the clips that were encoded."""
    prepared = PreparedSet(workdir / "prepared")
    return {prepared[index].source_id for index in range(len(prepared))}


def skipped_names(workdir: Path) -> list[str]:
    """Returns the names of the clips that were skipped with a reason."""
    path = workdir / "prepared" / "skipped.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sorted(line["source_id"] for line in lines if line["reason"])


@drill(target="skip list exact, good files dropped 0", full=2)
def damaged_videos(bench: Bench, count: int) -> Result:
    """A folder of which one file in ten is damaged is prepared, each time in a new workdir.

    Exactly the damaged ones must be skipped, each once and with a reason, and the list must be the same each time.
    """
    (folder, useless), tally, lists, dropped = heap(bench), Tally(), [], 0
    every = {path.name for path in folder.iterdir()} - {"captions.jsonl"}
    for _ in range(count):
        workdir = bench.new("of_heap")
        # So many frames that what is missing at the end of a damaged file is missed.
        bench.whole(workdir, until="prepare", data__max_frames=64, **folder_keys(folder))
        skipped = skipped_names(workdir)
        lists.append((workdir / "prepared" / "skipped.jsonl").read_bytes())
        lost = every - useless - prepared_names(workdir)
        dropped += len(lost)
        fault = f"good files dropped: {sorted(lost)}" if lost else ""
        if skipped != sorted(useless):
            fault = fault or f"skipped otherwise than expected: {sorted(set(skipped) ^ useless)}"
        tally.check(fault or ("" if lists[-1] == lists[0] else "the second list differs from the first"))
    return tally.result(f"{len(useless)} of {len(every)} files damaged, {dropped} good ones dropped")


def decoders(running: Running) -> list[int]:
    """Returns the processes that decode for a run, by number."""
    return [number for number in session(running) if decoder.__name__.encode() in _command(number)]


def session(running: Running) -> list[int]:
    """Returns the processes that live of all that a run has started, itself included; of Linux alone."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                facts = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(facts[3]) == running.process.pid and facts[0] != "Z":
                found.append(int(path.name))
    return found


def _command(number: int) -> bytes:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""


def start_preparing(bench: Bench) -> tuple[Running, Path, set[str]]:
    """Starts a run on drawn clips and returns it while its decoders work, with its workdir and the names of clips."""
    folder = bench.new("clips")
    names = draw_good(folder, 400)
    write_captions(folder)
    workdir = bench.new("of_clips")
    running = bench.start(*bench.flags(workdir, **folder_keys(folder)), "--until=prepare")
    if not running.wait_for(lambda: (workdir / "prepared").exists() and bool(decoders(running))):
        raise RuntimeError(f"the run ended before its decoders were met: {running.err()[-300:]}")
    return running, workdir, names


def lose_decoder(bench: Bench, count: int, how: signal.Signals, *, within: float) -> Result:
    """Sends a signal to each decoder at work, and times how long it takes until others work in their place."""
    tally, slowest, named = Tally(), 0.0, 0
    for _ in range(count):
        running, workdir, names = start_preparing(bench)
        victims = decoders(running)
        for victim in victims:
            os.kill(victim, how)
        began = time.monotonic()
        running.wait_for(lambda running=running, victims=victims: _replaced(running, victims), seconds=120)
        took = time.monotonic() - began
        slowest = max(slowest, took)
        ended = running.wait()
        skipped = skipped_names(workdir)
        named += len(skipped)
        fault = "" if ended.code == 0 else f"code {ended.code}: {ended.last_line}"
        if not fault and prepared_names(workdir) | {*skipped} != names:
            fault = "some clips were neither prepared nor named"
        if not fault and len(skipped) > len(victims):
            fault = f"{len(skipped)} clips were lost with {len(victims)} decoders"
        tally.check(fault or ("" if took <= within else f"it took {took:.1f} s"))
    return tally.result(f"slowest {slowest:.1f} s; {named} clips named as lost")


def _replaced(running: Running, victims: list[int]) -> bool:
    now = {*decoders(running)}
    return bool(now) and not now & {*victims}


@drill(target="replaced or named within 5 s", full=3)
def worker_killed(bench: Bench, count: int) -> Result:
    """SIGKILL to the decoders of a run: it must go on, and every clip must be prepared, or named as lost with one."""
    return lose_decoder(bench, count, signal.SIGKILL, within=_DEAD)


@drill(target="replaced or named within 30 s", full=1)
def worker_hung(bench: Bench, count: int) -> Result:
    """SIGSTOP to the decoders of a run, as one that hangs: they must be replaced, and their clips named."""
    return lose_decoder(bench, count, signal.SIGSTOP, within=_HUNG)


@drill(target="no process alive after 5 s", full=3)
def orphans(bench: Bench, count: int) -> Result:
    """SIGKILL to a run whose decoders work: five seconds later nothing that it started may live."""
    tally, wait_until = Tally(), _waited
    for _ in range(count):
        running, _, _ = start_preparing(bench)
        running.signal(signal.SIGKILL)
        running.process.wait()
        left = wait_until(lambda running=running: session(running), seconds=_ORPHANED)
        tally.check(f"{len(left)} processes are left" if left else "")
    return tally.result("")


def _waited(look: Callable[[], list[int]], *, seconds: float) -> list[int]:
    """Returns what is seen once it is nothing, or after so many seconds."""
    until = time.monotonic() + seconds
    while (seen := look()) and time.monotonic() < until:
        time.sleep(0.05)
    return seen
