"""Where drills work: a temporary folder, a run of seconds, and processes started as a user starts them."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from sora_jax.core import rng
from sora_jax.train.metrics import read_metrics

# Of one process; the longest start, which compiles, takes a minute on two idle cores.
DRILL_SECONDS = 600.0
STEPS, EVERY = 200, 20  # of the run's last stage, and between its checkpoints
STAGE = "videos"
# The base config at a size of seconds. Every step is logged, so that the losses tell the order of the data.
SMALL: dict[str, Any] = {
    "run": ("autoencoder", "prepare", STAGE),
    "shapes.num_clips": 48,
    "shapes.sides": ((16, 16),),
    "shapes.image_share": 0.0,
    "shapes.frames": (5,),
    "data.max_frames": 5,
    "data.min_tokens": 1,
    "data.max_tokens": 24,
    "autoencoder.width": 8,
    "autoencoder.multipliers": (1, 1, 1),
    "autoencoder.decoder_width": 8,
    "autoencoder.channels": 4,
    "transformer.width": 16,
    "transformer.depth": 1,
    "transformer.heads": 2,
    "transformer.mlp_width": 16,
    "transformer.frequency_dim": 16,
    "text.width": 16,
    "text.heads": 2,
    "packing.tokens": 36,
    "packing.segments": 9,
    "packing.rows": 8,
    "packing.window": 64,
    "stages.autoencoder.steps": 6,
    "stages.autoencoder.crops.buckets": ((5, 16, 16, 8),),
    "stages.prepare.batch": 8,
    "stages.prepare.clips_per_shard": 16,
    f"stages.{STAGE}.steps": STEPS,
    f"stages.{STAGE}.mix.images": 0.0,
    f"stages.{STAGE}.mix.videos": 1.0,
    "checkpoint.every_steps": EVERY,
    "checkpoint.keep": 3,
    "log.every_steps": 1,
    "sampling.size": (16, 16),
    "sampling.frames": 5,
    "log.samples_per_stage": 0,
}
# Changes for a run that must not be done before something happens to it.
LONG: dict[str, Any] = {f"stages__{STAGE}__steps": 100_000}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended: exit code (negative: the signal), what it said, and after how many seconds."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line of what it said on stderr; "" if none."""
        return (self.err.strip().splitlines() or [""])[-1]


class Running:
    """A process that was started; what it says goes to files, so that no pipe can stop it."""

    def __init__(self, command: Sequence[str], *, environment: dict[str, str], files: Path):
        self._files = files
        files.mkdir(parents=True)
        with (files / "out").open("w") as out, (files / "err").open("w") as err:
            self._began = time.monotonic()
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def out(self) -> str:
        """What it has said on stdout so far."""
        return (self._files / "out").read_text(errors="replace")

    def err(self) -> str:
        """What it has said on stderr so far."""
        return (self._files / "err").read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def wait_for(self, come: Callable[[], bool], *, seconds: float = DRILL_SECONDS) -> bool:
        """Whether `come` was true before the process ended; raises TimeoutError after so many seconds."""
        until = time.monotonic() + seconds
        while not come():
            if not self.alive:
                return come()
            if time.monotonic() > until:
                self.kill()
                raise TimeoutError(f"waited for {seconds:.0f} s; it said: {self.err()[-300:]}")
            time.sleep(0.002)
        return True

    def wait(self, *, seconds: float = DRILL_SECONDS) -> Ended:
        """How it ended; one that does not end in time is killed, which its code then says."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self.process.wait()
        took = time.monotonic() - self._began
        return Ended(code=code, out=self.out(), err=self.err(), seconds=took)

    def kill(self) -> None:
        """Kills it and all it has started, if anything of it lives."""
        for target in (os.killpg, os.kill):
            try:
                target(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


class Bench:
    """What all drills share; a context manager, which leaves no process behind.

    Attributes:
      folder: Where anything may be written.
      config: Path of the base config.
      seed: Of what is random in the drills.
      clips: A folder with `real/` and `damaged/` clips (docs/reliability.md), or None.
    """

    def __init__(self, folder: Path, *, config: str, seed: int, clips: str | None = None):
        self.folder, self.seed, self.clips = folder, seed, clips
        self.config = str(Path(config).absolute())
        self._running: list[Running] = []
        self._counts: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()

    def end_all(self) -> None:
        """Kills what still runs."""
        for running in self._running:
            if running.alive:
                running.kill()
                running.process.wait()
        self._running.clear()

    def random(self, name: str) -> np.random.Generator:
        """Returns the random numbers of a drill, the same at the same seed."""
        return rng.generator(self.seed, f"drill {name}")

    def new(self, name: str) -> Path:
        """Returns a path in `folder` at which nothing is yet."""
        self._counts[name] = number = self._counts.get(name, -1) + 1
        return self.folder / f"{name}_{number}"

    def flags(self, workdir: Path, **changes: Any) -> list[str]:
        """Returns the flags of the small run in `workdir`; `changes` are keys with __ for each dot."""
        keys = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
        text = {name: value if isinstance(value, str) else repr(value) for name, value in keys.items()}
        return [f"--config={self.config}", f"--workdir={workdir}", "--until=diffusion"] + [
            f"--config.{name}={value}" for name, value in text.items()
        ]

    def start(
        self,
        *flags: str,
        module: str = "sora_jax.main",
        disturbance: str | None = None,
        devices: int = 1,
        environment: dict[str, str] | None = None,
    ) -> Running:
        """Starts a command of the package, disturbed as `drills.disturbed` says, on so many simulated devices."""
        start = ["-m", module] if disturbance is None else ["-m", f"{__package__}.disturbed", disturbance, module]
        running = Running(
            [sys.executable, *start, *flags],
            environment=self.environment(devices) | (environment or {}),
            files=self.new("said"),
        )
        self._running.append(running)
        return running

    def run(self, *flags: str, **how: Any) -> Ended:
        """Starts a command as `start` does, and waits until it has ended."""
        return self.start(*flags, **how).wait()

    def environment(self, devices: int) -> dict[str, str]:
        """Returns that of a child: CPU devices, and one compilation cache for all drills, its own or the user's."""
        others = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
        return os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": " ".join([*others, f"--xla_force_host_platform_device_count={devices}"]),
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(self.folder / "compiled")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path))),
        }

    def prepared(self, **changes: Any) -> Path:
        """Returns a copy of a workdir of which only the last stage is left, as begun with `changes` of the config."""
        workdir = self._copy("prepared", lambda path: self.whole(path, until="prepare"))
        path = workdir / "config.json"
        config = json.loads(path.read_text())
        for name, value in changes.items():
            *groups, key = name.split("__")
            group = config
            for inner in groups:
                group = group[inner]
            group[key] = value
        path.write_text(json.dumps(config))
        return workdir

    def halfway(self, **changes: Any) -> Path:
        """Returns a copy of a workdir whose last stage was stopped, with three checkpoints or more, by SIGTERM."""

        def make(path: Path) -> None:
            self.prepared(**changes).rename(path)
            running = self.start(*self.flags(path, **changes))
            running.wait_for(lambda: steps_done(path) >= 4 * EVERY + 5)
            running.signal(signal.SIGTERM)
            if running.wait().code != 85:
                raise RuntimeError(f"a run that was asked to stop did not: {running.err()[-600:]}")

        return self._copy(f"halfway_{sorted(changes.items())}", make)

    def finished(self, *, devices: int = 1, **changes: Any) -> Path:
        """Returns a copy of the workdir of a run that nothing interrupted."""

        def make(path: Path) -> None:
            self.prepared(**changes).rename(path)
            self.whole(path, devices=devices, **changes)

        return self._copy(f"finished_{devices}_{sorted(changes.items())}", make)

    def whole(self, workdir: Path, *, until: str = "diffusion", devices: int = 1, **changes: Any) -> Ended:
        """Runs until the end of a kind of stage; RuntimeError if that ends otherwise than well."""
        ended = self.run(*self.flags(workdir, **changes), f"--until={until}", devices=devices)
        if ended.code:
            raise RuntimeError(f"a run that nothing disturbs ended with code {ended.code}: {ended.err[-600:]}")
        return ended

    def _copy(self, name: str, make: Callable[[Path], Any]) -> Path:
        name = "".join(letter if letter.isalnum() else "_" for letter in name)
        template = self.folder / "templates" / name
        if not template.exists():
            partial = self.new("partial")
            make(partial)
            template.parent.mkdir(exist_ok=True)
            partial.rename(template)
        return Path(shutil.copytree(template, self.new(name), symlinks=True))


def free_port() -> int:
    """Returns a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def steps_done(workdir: Path) -> int:
    """Returns the last step of the last stage that metrics.jsonl tells of; 0 if none."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return 0
    for line in reversed(path.read_text().splitlines()):
        try:
            told = json.loads(line)
        except ValueError:  # half written
            continue
        return told["step"] if told["stage"] == STAGE else 0
    return 0


def losses(workdir: Path) -> dict[int, float]:
    """Returns the loss of each step of the last stage."""
    return {line["step"]: line["loss"] for line in read_metrics(workdir) if line["stage"] == STAGE and "loss" in line}


def saved_steps(workdir: Path) -> list[int]:
    """Returns the steps of which there is a folder of a checkpoint of the last stage, in order."""
    folder = workdir / "checkpoints" / STAGE
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.exists() else []
