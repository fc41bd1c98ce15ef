"""What is silent as a command begins: that its programs are compiled, and how long that may take."""

import contextlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.monitoring
from absl import logging

from sora_jax.experiment.schema import Settings
from sora_jax.experiment.speed import compile_seconds
from sora_jax.train.progress import about

# In the cache of programs: seconds that compiling took the last time, by what for.
_FILE = "seconds.json"
# What jax calls the times that count.
_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")


@contextlib.contextmanager
def compiling_told(work: str, compiling: tuple[float, float], settings: Settings, cache: Path | None) -> Iterator[None]:
    """Says that the programs of some `work` are compiled first, and about how long that takes.

    It is what it took the last time with models of these shapes, as `cache` remembers, else what `compiling`, seconds
    to compile and to load, makes on this machine. What it takes this time is noted when the work is done.
    """
    name = f"{work} {jax.default_backend()} {zlib.crc32(repr((settings.autoencoder, settings.transformer)).encode()):x}"
    known = {} if cache is None else _read(cache)
    seconds = known[name] if name in known else compile_seconds(compiling, cache)
    logging.info("%s: first the programs are compiled, about %s", work, about(seconds))
    took: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event in _EVENTS:
            took.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    if cache is not None and took:
        _note(cache, name, sum(took))


def _read(cache: Path) -> dict[str, float]:
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):  # none yet, or torn
        return {str(name): float(took) for name, took in json.loads((cache / _FILE).read_text()).items()}
    return {}


def _note(cache: Path, name: str, seconds: float) -> None:
    """Notes it for the next time; a cache that cannot be written knows none."""
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile("w", dir=cache, delete=False) as file:
            json.dump({**_read(cache), name: seconds}, file)
        os.replace(file.name, cache / _FILE)
