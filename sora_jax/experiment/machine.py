"""What a run takes of its machine, held against what there is: a small machine gets smaller caches and fewer readers.

Neither changes a number of the run.
"""

import dataclasses
import os

import jax
from absl import logging

from sora_jax.core.host_memory import available_memory
from sora_jax.experiment.schema import DataConfig, Settings

# Bytes: of a process with its compiler and programs, without caches; of each reader; the smallest cache.
_PROCESS, _READER, _LEAST_CACHE_MB = 1.7e9, 0.2e9, 32


def fit_to_machine(settings: Settings) -> Settings:
    """Returns the settings with as many readers, and as large caches, as this machine has cores and memory for.

    Says what it lowers, and what may still go wrong.
    """
    cores = available_cores()
    if cores == 1 and settings.data.readers > 1:
        logging.warning(
            "there is one core: clips are decoded by one reader, not data.readers %d", settings.data.readers
        )
        settings = _with_readers(settings, 1)
    available, needed = available_memory(), needed_memory(settings)
    if available is None or needed <= available:
        return settings
    smaller = _with_readers(settings, 1)
    room = (available - needed_memory(_with_caches(smaller, 0))) / 1e6
    smaller = _with_caches(smaller, max(int(room), _LEAST_CACHE_MB))
    rest = needed_memory(smaller)
    logging.warning(
        "the run takes about %.1f GB of memory and %.1f GB are free: it goes on with one reader and caches of %d MB%s",
        needed / 1e9,
        available / 1e9,
        largest_cache(smaller),
        "" if rest <= available else ", which may still be too much: end other programs, or use a larger machine",
    )
    return smaller


def needed_memory(settings: Settings) -> float:
    """Returns about how many bytes of main memory a run takes at most; a large model on CPU takes more."""
    readers = max(one.readers for one in settings.collections.values())
    return _PROCESS + readers * _READER + 1e6 * largest_cache(settings)


def largest_cache(settings: Settings) -> int:
    """Returns the megabytes of decoded clips that a stage keeps at most."""
    return max((settings.stages[name].cache_mb for name in settings.run), default=0)


def free_memory() -> float | None:
    """Returns the bytes that arrays of one device may still take; None where nothing says so."""
    said = jax.local_devices()[0].memory_stats()
    if said and "bytes_limit" in said:
        return float(said["bytes_limit"] - said.get("bytes_in_use", 0))
    return available_memory()


def _with_readers(settings: Settings, readers: int) -> Settings:
    """Returns the settings with at most so many readers of each collection."""

    def fewer(data: DataConfig) -> DataConfig:
        return dataclasses.replace(data, readers=min(data.readers, readers))

    more = {name: fewer(data) for name, data in settings.more_data.items()}
    return dataclasses.replace(settings, data=fewer(settings.data), more_data=more)


def _with_caches(settings: Settings, megabytes: int) -> Settings:
    """Returns the settings with caches of at most so many megabytes."""
    stages = {name: stage.with_cache(min(stage.cache_mb, megabytes)) for name, stage in settings.stages.items()}
    return dataclasses.replace(settings, stages=stages)


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
