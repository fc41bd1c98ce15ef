"""What the compiler is asked for beyond the program, and where what it made is kept."""

import os
import tempfile
from pathlib import Path

import jax
from absl import logging

from sora_jax.core.errors import UserError
from sora_jax.core.mesh import current_platform

# Longer than any compilation takes: programs are then read from a cache, and never written to it.
_NEVER_SECONDS = 1e9
# What is left to YNNPACK: products and sums, not convolutions.
_YNNPACK = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
# Entries of a cache from which on it is taken to hold the programs of a run.
_FILLED = 20


def run_often() -> dict[str, int | str]:
    """Returns options for `jax.jit` of a program that runs many times; what XLA_FLAGS says otherwise counts.

    On CPU there are two, and elsewhere none. LLVM optimises at its first level, which takes a third to two fifths less
    time: what a program takes long for, its products and convolutions, is compiled already. And convolutions are left
    to Eigen, which shares each among all cores; YNNPACK, which XLA prefers, takes one core (`benchmarks.compiling`).
    """
    if current_platform() != "cpu":
        return {}
    options = {"xla_backend_optimization_level": 1, "xla_cpu_experimental_ynn_fusion_type": _YNNPACK}
    said = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if f"--{name}=" not in said}


def run_once() -> dict[str, int]:
    """Returns options for `jax.jit` of a program that runs once.

    On CPU LLVM then optimises nothing, which is what takes most of the time; elsewhere there are none.
    """
    return {"xla_backend_optimization_level": 0} if current_platform() == "cpu" else {}


def use_compilation_cache() -> Path | None:
    """Keeps compiled programs between runs, in the user's own cache folder, unless the user chose a place.

    Returns the folder. Where there is none, it is another user's, as of a container made by root, or nothing can be
    written there, says so and goes on without. Raises UserError for a folder that everybody may write to.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    try:
        cache = Path(chosen).expanduser() if chosen else _own_cache()
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = cache.stat()
        if not chosen and found.st_uid != os.getuid():
            raise PermissionError(f"{cache} is of user {found.st_uid} and this is {os.getuid()}")
    except (OSError, RuntimeError) as error:
        logging.warning(
            "there is no folder to keep compiled programs in (%s): each start compiles them again; name one in "
            "JAX_COMPILATION_CACHE_DIR",
            error,
        )
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    if not chosen and found.st_mode & 0o022:
        raise UserError(
            f"others may write to {cache}, and the programs in it are run: make it yours alone (chmod 700), or "
            "name another folder in JAX_COMPILATION_CACHE_DIR"
        )
    jax.config.update("jax_compilation_cache_dir", str(cache))
    try:
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError as error:
        logging.warning(
            "compiled programs are read from %s but cannot be kept there (%s): what is not in it is compiled again in "
            "each start; name another folder in JAX_COMPILATION_CACHE_DIR",
            cache,
            error.strerror,
        )
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _NEVER_SECONDS)
    return cache


def holds_programs(cache: Path | None) -> bool:
    """Returns whether a folder of compiled programs has as many as a run needs."""
    return cache is not None and cache.is_dir() and sum(1 for _ in cache.iterdir()) >= _FILLED


def _own_cache() -> Path:
    """Returns where the user keeps caches; RuntimeError for a user without a home."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    return (Path(chosen) if chosen else Path.home() / ".cache") / "sora_jax" / "xla"
