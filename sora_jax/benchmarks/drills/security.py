"""Files that strangers may have made: what they would do if anyone trusted them must not happen."""

import http.server
import io
import pickle
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np

from sora_jax.benchmarks.drills.bench import STAGE, Bench, saved_steps
from sora_jax.benchmarks.drills.data import draw_good, folder_keys, prepared_names, skipped_names, write_captions
from sora_jax.benchmarks.drills.registry import Result, Tally, drill
from sora_jax.core.errors import UserError


class _Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self):
        return (Path.write_text, (self._path, "it sang"))


def pickles(canary: Path) -> dict[str, bytes]:
    """Returns files of weights by ending; whoever unpickles one writes the file `canary`."""
    bare = pickle.dumps(_Canary(canary))
    archive, arrays, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", bare)
        file.writestr("archive/version", "3\n")
    objects = np.array([_Canary(canary)], dtype=object)
    np.savez(arrays, weight=objects)
    np.save(array, objects, allow_pickle=True)
    return {"pkl": bare, "pt": archive.getvalue(), "npz": arrays.getvalue(), "npy": array.getvalue()}


@drill(target="refused by content, canary silent", full=16, quick=2)
def pickled_weights(bench: Bench, count: int) -> Result:
    """Weights that hold a pickle, by their own name and as .safetensors, of an autoencoder and of LPIPS.

    The run must end with code 2 and a sentence that names the file, and what the pickle would run must not have run.
    """
    folder, tally, sang = bench.new("weights"), Tally(), 0
    folder.mkdir()
    canary = folder / "canary"
    cases = [
        (ending if own else "safetensors", content, key)
        for key in ("autoencoder.weights", "perceptual_weights")
        for own in (False, True)
        for ending, content in pickles(canary).items()
    ]
    for number in range(min(count, len(cases))):
        ending, content, key = cases[number]
        path = folder / f"weights_{number}.{ending}"
        path.write_bytes(content)
        flags = [f"--config.{key}={path}"]
        if key == "perceptual_weights":
            flags.append("--config.autoencoder_loss.perceptual=0.1")
        ended = bench.run(*bench.flags(bench.new("fed")), *flags)
        refused = ended.code == UserError.exit_code and path.name in ended.last_line
        fault = "" if refused else f"{path.name}: code {ended.code}: {ended.last_line}"
        if canary.exists():
            fault, sang = f"{path.name} was unpickled", sang + 1
            canary.unlink()
        tally.check(fault)
    return tally.result(f"the canary sang {sang} times")


class _Listener(http.server.BaseHTTPRequestHandler):
    """Counts who asks."""

    hits = 0

    def do_GET(self) -> None:
        type(self).hits += 1
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@drill(target="refused, nobody is asked", full=1)
def playlists(bench: Bench, count: int) -> Result:
    """Clips that are lists of other files or addresses: ffconcat, HLS, DASH, under names of videos.

    Each must be skipped with a reason, no other file may be taken for it, and a web server here must not be asked.
    """
    tally = Tally()
    _Listener.hits = 0
    for _ in range(count):
        folder = bench.new("lists")
        good = draw_good(folder, 12)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Listener) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_address[1]}/0.mp4"
            secret = (folder / "0.mp4").absolute()
            hls = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n"
            lists = {
                "near.mp4": "ffconcat version 1.0\nfile 0.mp4\n",
                "local.mkv": f"ffconcat version 1.0\nfile '{secret}'\n",
                "far.mp4": f"ffconcat version 1.0\nfile {address}\n",
                "hls.mp4": hls.format(address),
                "hls_local.webm": hls.format(secret),
                "dash.mp4": f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{address}</BaseURL></MPD>',
            }
            for name, text in lists.items():
                (folder / name).write_text(text)
            write_captions(folder)
            workdir = bench.new("of_lists")
            bench.whole(workdir, until="prepare", data__max_bad_share=0.5, **folder_keys(folder))
            server.shutdown()
        skipped, taken = skipped_names(workdir), prepared_names(workdir)
        fault = "" if skipped == sorted(lists) and taken == good else f"skipped {skipped}, prepared {sorted(taken)}"
        tally.check(fault or (f"the server was asked {_Listener.hits} times" if _Listener.hits else ""))
    return tally.result(f"6 lists, {_Listener.hits} requests")


@drill(target="refused; the step before is used", full=2)
def linked_checkpoint(bench: Bench, count: int) -> Result:
    """A file of the newest checkpoint, or its whole folder, is replaced by a symbolic link to the same content."""
    tally = Tally()
    for trial in range(count):
        workdir = bench.halfway()
        *_, before, newest = saved_steps(workdir)
        step = workdir / "checkpoints" / STAGE / str(newest)
        target = step if trial % 2 else max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        elsewhere = Path(shutil.move(target, bench.new("elsewhere")))
        target.symlink_to(elsewhere)
        ended = bench.run(*bench.flags(workdir))
        right = ended.code == 0 and f"going on from step {before}" in ended.err
        tally.check("" if right else f"{target.name}: code {ended.code}, {ended.err[-300:]}")
    return tally.result("a file, a folder")
