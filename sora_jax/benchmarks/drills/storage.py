"""Checkpoints whose files change or go, and a file system that is full or refuses."""

import contextlib
import dataclasses
import functools
import logging as standard_logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from sora_jax.benchmarks.drills.bench import EVERY, STAGE, STEPS, Bench, saved_steps, steps_done
from sora_jax.benchmarks.drills.comparing import arrays, difference, same_bits
from sora_jax.benchmarks.drills.registry import Result, Tally, drill
from sora_jax.checkpoints import manifest
from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.checkpoints.reading import Restored, load_tree
from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.mesh import make_mesh
from sora_jax.experiment.audit import checkpoint_faults
from sora_jax.experiment.recipes import state_maker
from sora_jax.experiment.settings import Settings, read_settings
from sora_jax.train.workdir import Workdir

# Trials of a drill that start the real command; the others ask the code that it asks.
_REAL = 3


def settings_of(workdir: Path) -> Settings:
    """Returns the settings of the run there."""
    return read_settings(Workdir(workdir).config())


def faults_of(workdir: Path) -> list[tuple[str, list[str]]]:
    """Returns (STAGE/STEP, what is wrong with it) of every checkpoint there."""
    return list(checkpoint_faults(Workdir(workdir), settings_of(workdir)))


def abstract_state(workdir: Path) -> Any:
    """Returns the state of the run's last stage as shapes, on one device."""
    settings = settings_of(workdir)
    mesh = make_mesh(settings.mesh, jax.devices()[:1])
    return state_maker(settings, STAGE, mesh).abstract()


@contextlib.contextmanager
def warnings_heard() -> Iterator[list[str]]:
    """Yields a list to which warnings of the log are added, which nobody else hears meanwhile."""
    heard: list[str] = []

    class Ear(standard_logging.Handler):
        def emit(self, record: standard_logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger = logging.get_absl_logger()
    before, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Ear(standard_logging.WARNING)], False
    try:
        yield heard
    finally:
        logger.handlers, logger.propagate = before, propagate


class Refusals:
    """Asks, of workdirs that were damaged, what is restored and what is said of the rest."""

    def __init__(self, workdir: Path):
        self.steps = saved_steps(workdir)
        self._abstract = {"params": abstract_state(workdir).params}
        self._good = {step: arrays(workdir, step) for step in self.steps}

    def fault(self, workdir: Path, damaged: Path, *, bad: int = 1) -> str:
        """Returns why it is wrong how a workdir is treated whose `bad` newest steps have the file `damaged` changed.

        They must be passed over by a warning that names the file, verify must name them, and what is restored must be
        the step before, bit for bit.
        """
        expected = self.steps[-1 - bad]
        with warnings_heard() as heard:
            restored = load_tree(workdir / "checkpoints" / STAGE, self._abstract)
        if restored.step != expected:
            return f"{damaged.name} changed, and step {restored.step} was restored, not {expected}"
        if not any(names(damaged, line) for line in heard):
            return f"{damaged.name} changed, and what was said is {heard}"
        told = {name for name, faults in faults_of(workdir) if faults}
        if f"{STAGE}/{self.steps[-1]}" not in told:
            return f"{damaged.name} changed, and verify finds damage in {sorted(told) or 'nothing'}"
        return self._changed(restored)

    def _changed(self, restored: Restored) -> str:
        """Returns which parameter is not as it was saved; "" if all are."""
        for name, value in restored.state["params"].items():
            path = tuple(map(jax.tree_util.DictKey, ("params", name)))
            if not same_bits(value, self._good[restored.step][jax.tree_util.keystr(path)]):
                return f"{name} of step {restored.step} is not as it was saved"
        return ""


def names(damaged: Path, said: str) -> bool:
    """Whether a message names a damaged file. Of the list of digests itself nobody can say which side is wrong."""
    return damaged.name in said or (damaged.name == manifest.MANIFEST and "is not used" in said)


def _newest(workdir: Path) -> Path:
    return workdir / "checkpoints" / STAGE / str(saved_steps(workdir)[-1])


def _files(workdir: Path, step: int) -> list[Path]:
    """Returns every file of a checkpoint."""
    return sorted(path for path in (workdir / "checkpoints" / STAGE / str(step)).rglob("*") if path.is_file())


def flip(path: Path, bit: int) -> None:
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


@drill(target="found, named; the step before is used", full=100, quick=10)
def bit_flip(bench: Bench, count: int) -> Result:
    """One bit is flipped anywhere in the newest checkpoint: in a file chosen at random, at a random place in it.

    A warning must name the file, `verify` must find it, and the step before must be restored bit for bit. A few of the
    trials start the run itself, which must go on from the step before.
    """
    workdir, random, tally = bench.halfway(), bench.random("bit_flip"), Tally()
    refusals = Refusals(workdir)
    newest, before = refusals.steps[-1], refusals.steps[-2]
    files = [path for path in _files(workdir, newest) if path.stat().st_size]
    real = min(_REAL, max(1, count // 10))
    for trial in range(count):
        path = files[int(random.integers(len(files)))]
        bit = int(random.integers(8 * path.stat().st_size))
        if trial < real:
            copy = Path(shutil.copytree(workdir, bench.new("flipped")))
            flip(copy / path.relative_to(workdir), bit)
            ended = bench.run(*bench.flags(copy))
            right = ended.code == 0 and f"going on from step {before}" in ended.err and names(path, ended.err)
            tally.check("" if right else f"{path.name}, bit {bit}: code {ended.code}, {ended.err[-300:]}")
            continue
        flip(path, bit)
        tally.check(refusals.fault(workdir, path))
        flip(path, bit)
    return tally.result(f"{len(files)} files, {real} trials with the whole command")


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


@drill(target="each found and named", full=3)
def damaged_files(bench: Bench, count: int) -> Result:
    """Every file of the newest checkpoint in turn is cut in half, emptied, and deleted (`count` of these three ways).

    Then one file of the two newest checkpoints is, and the third must be used; then of all, and the run must end with
    code 74 and not start afresh.
    """
    workdir, tally = bench.halfway(), Tally()
    refusals = Refusals(workdir)
    ways: tuple[Callable[[Path], None], ...] = (_cut, _empty, Path.unlink)
    for way in ways[:count]:
        for path in _files(workdir, refusals.steps[-1]):
            content = path.read_bytes()
            if content:
                way(path)
                tally.check(refusals.fault(workdir, path))
                path.write_bytes(content)
    for bad, step in enumerate(reversed(refusals.steps), start=1):
        largest = max(_files(workdir, step), key=lambda path: path.stat().st_size)
        _cut(largest)
        if 1 < bad < len(refusals.steps):
            tally.check(refusals.fault(workdir, largest, bad=bad))
    ended = bench.run(*bench.flags(workdir))
    tally.check("" if ended.code == StorageError.exit_code else f"all damaged: code {ended.code}, {ended.last_line}")
    return tally.result(f"{count} of 3 ways for each file")


def _copied(folder: Path, newest: Path, *without: str) -> None:
    shutil.copytree(newest, folder, ignore=shutil.ignore_patterns(*without))


# What no save has finished, by the name under which it lies: (its path, the newest step) -> it is there.
_FOREIGN: dict[str, Callable[[Path, Path], None]] = {
    "900": lambda folder, _: folder.mkdir(),
    "901": lambda folder, newest: _copied(folder, newest, "d"),
    "902": _copied,
    "903": lambda folder, newest: _copied(folder, newest, "manifest.json"),
    "904.orbax-checkpoint-tmp": _copied,
    "0905": _copied,
    "906": lambda file, _: file.touch(),
}


@drill(target="none is taken for a checkpoint", full=len(_FOREIGN), quick=2)
def foreign_folders(bench: Bench, count: int) -> Result:
    """Folders of a higher step: empty, copied in part, under another number, without its manifest, unfinished.

    Each is put there by itself; the run must go on from its own newest step.
    """
    tally = Tally()
    for name, make in [*_FOREIGN.items()][:count]:
        workdir = bench.halfway()
        folder = workdir / "checkpoints" / STAGE
        newest = saved_steps(workdir)[-1]
        make(folder / name, folder / str(newest))
        ended = bench.run(*bench.flags(workdir))
        right = ended.code == 0 and f"going on from step {newest}" in ended.err
        tally.check("" if right else f"{name}: code {ended.code}, {ended.err[-300:]}")
    return tally.result(", ".join([*_FOREIGN][:count]))


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Yields a folder with a file system of its own; PermissionError where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "faults", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        raise PermissionError("a file system of its own may not be mounted here: this drill needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@drill(target="no false 'saved', code 74", full=5)
def disk_full(bench: Bench, count: int) -> Result:
    """A file system of 64 MB is filled during the run, up to less than a checkpoint.

    Each step of which the log says that it is saved must be whole, or have made place for newer ones; the run must end
    with code 74; and with space again the same command must come to the same end bit for bit.
    """
    expected, random, tally, false = bench.finished(), bench.random("disk_full"), Tally(), 0
    for _ in range(count):
        with small_disk(bench.new("disk"), 64) as disk:
            workdir = Path(shutil.copytree(bench.prepared(), disk / "run"))
            running = bench.start(*bench.flags(workdir))
            until = int(random.integers(EVERY + 1, STEPS // 2))
            running.wait_for(lambda until=until, workdir=workdir: steps_done(workdir) >= until)
            _fill(disk / "ballast", keep=int(random.integers(0, 200_000)))
            ended = running.wait()
            lies = _false_claims(workdir, ended.err)
            false += len(lies)
            (disk / "ballast").unlink()
            again = bench.run(*bench.flags(workdir))
            fault = f"it said that {lies} are saved" if lies else ""
            if not fault and ended.code != StorageError.exit_code:
                fault = f"code {ended.code}: {ended.last_line}"
            if not fault and again.code:
                fault = f"with space again, code {again.code}: {again.last_line}"
            tally.check(fault or difference(expected, workdir))
    return tally.result(f"{false} false 'saved' lines")


def _fill(path: Path, *, keep: int) -> None:
    """Writes zeros until so many bytes are free."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (free := shutil.disk_usage(path.parent).free) > keep:
            file.write(bytes(min(free - keep, 1 << 20)))


def _false_claims(workdir: Path, said: str) -> list[str]:
    """Returns the steps of the last stage that are said to be saved and are not, among the newest that are kept."""
    whole = {name.split("/")[1] for name, faults in faults_of(workdir) if not faults}
    claimed = [line.split("checkpoint of step ")[1] for line in said.splitlines() if "saved the checkpoint of" in line]
    return [step for step in claimed[-3:] if step not in whole]


@drill(target="code 74, nothing compiled", full=2)
def read_only(bench: Bench, count: int) -> Result:
    """The run is started on a file system that was mounted read-only, with an empty compilation cache.

    It must end with code 74 and one sentence, and nothing may have been compiled.
    """
    tally, slowest = Tally(), 0.0
    for _ in range(count):
        with small_disk(bench.new("disk"), 64) as disk:
            workdir = Path(shutil.copytree(bench.halfway(), disk / "run"))
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            cache = bench.new("cache")
            ended = bench.run(*bench.flags(workdir), environment={"JAX_COMPILATION_CACHE_DIR": str(cache)})
            slowest = max(slowest, ended.seconds)
            compiled = len(list(cache.iterdir())) if cache.exists() else 0
            fault = "" if ended.code == StorageError.exit_code else f"code {ended.code}: {ended.last_line}"
            tally.check(fault or (f"{compiled} programs were compiled first" if compiled else ""))
    return tally.result(f"slowest {slowest:.1f} s from start to end")


@drill(target="each refused by name", full=1)
def leaves(bench: Bench, count: int) -> Result:
    """A checkpoint is restored into a state with a leaf of another dtype, another shape, one missing, one extra."""
    workdir, tally = bench.halfway(), Tally()
    folder, state = workdir / "checkpoints" / STAGE, abstract_state(workdir)
    name = min(state.params)
    leaf = state.params[name]
    longer = (leaf.shape[0] + 1, *leaf.shape[1:])
    make = functools.partial(jax.ShapeDtypeStruct, sharding=leaf.sharding)
    for _ in range(count):
        for params, named in (
            (state.params | {name: make(leaf.shape, jnp.bfloat16)}, name),
            (state.params | {name: make(longer, leaf.dtype)}, name),
            ({key: value for key, value in state.params.items() if key != name}, name),
            (state.params | {"one_more": leaf}, "one_more"),
        ):
            try:
                with Checkpointer(folder, settings_of(workdir).checkpoint) as saver:
                    saver.restore(dataclasses.replace(state, params=params))
                tally.check(f"{named} was no reason to refuse")
            except UserError as error:
                tally.check("" if named in str(error) else f"{named} is not named: {error}")
    return tally.result("dtype, shape, missing, extra")
