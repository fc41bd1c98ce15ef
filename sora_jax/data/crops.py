"""Batches of pixels for the autoencoder: random windows of clips, a few fixed shapes in turn.

A window is cut, never resized; a share of them is altered (`data/augment.py`). Batch i is a pure function of (seed, i),
so its number is all the state there is.
"""

import collections
import dataclasses
import logging
import threading

import grain
import numpy as np

from sora_jax.core import rng
from sora_jax.core.errors import DataError, UserError
from sora_jax.data.augment import alter
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.sources.base import Source, fingerprint

# Draws until a clip is found that is large enough for a bucket; then the bucket is declared impossible.
_MOST_DRAWS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Which windows the autoencoder trains on.

    Attributes:
      buckets: (frames, height, width, clips) of each batch shape, taken in turn; one compilation each.
      cache_mb: Memory for decoded clips that are kept between batches, in megabytes.
      altered: Share of the windows that are altered, in [0, 1].
      faster: Of clips with every second frame of which a window of several frames can be filled, the share, in [0, 1],
        of which that is done: things then move twice as far between frames. None: none.
    """

    buckets: tuple[tuple[int, int, int, int], ...]
    cache_mb: int
    altered: float
    faster: float | None

    def __post_init__(self):
        if not self.buckets or any(len(bucket) != 4 or min(bucket) < 1 for bucket in self.buckets):
            raise UserError(
                f"buckets must be one or more (frames, height, width, clips), each at least 1; not {self.buckets}"
            )
        for name, share in (("altered", self.altered), ("faster", self.faster or 0.0)):
            if not 0 <= share <= 1:
                raise UserError(f"{name} must be a share of the windows, from 0 to 1; not {share}")


class ClipCache:
    """The most recently used clips of a source, up to a number of bytes; safe for threads."""

    def __init__(self, source: Source, *, max_bytes: int):
        self._source = source
        self._max_bytes = max_bytes
        self._clips: collections.OrderedDict[int, Clip] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Clip:
        with self._lock:
            if index in self._clips:
                self._clips.move_to_end(index)
                return self._clips[index]
        clip = self._source[index]
        with self._lock:
            if index not in self._clips:
                self._clips[index] = clip
                self._bytes += clip.pixels_THWC.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._clips.popitem(last=False)[1].pixels_THWC.nbytes
        return clip


class CropStream:
    """Random-access batches: number -> {"clip_BTHWC": uint8}, with this process's share of the clips."""

    def __init__(
        self, source: Source, config: CropConfig, *, seed: int, process_index: int = 0, process_count: int = 1
    ):
        for bucket in config.buckets:
            if bucket[3] % process_count:
                raise UserError(f"bucket {bucket} holds {bucket[3]} clips, not divisible by {process_count} processes")
        self._clips = ClipCache(source, max_bytes=config.cache_mb * 2**20)
        self._buckets = config.buckets
        self._altered, self._faster = config.altered, config.faster
        self._seed = seed
        self._process = (process_index, process_count)
        self._bad: dict[str, str] = {}
        self._source = fingerprint(source)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        frames, height, width, clips = self._buckets[number % len(self._buckets)]
        index, count = self._process
        mine = range(index * clips // count, (index + 1) * clips // count)
        return {"clip_BTHWC": np.stack([self._window(number, i, (frames, height, width))[1] for i in mine])}

    def names(self, number: int) -> list[str]:
        """Returns what the clips of a batch, of all processes, are called."""
        *size, clips = self._buckets[number % len(self._buckets)]
        return [self._window(number, slot, (size[0], size[1], size[2]))[0] for slot in range(clips)]

    def fingerprint(self) -> dict[str, object]:
        """Returns what the order of batches depends on, fit for JSON."""
        buckets = [list(bucket) for bucket in self._buckets]
        facts = {"seed": self._seed, "data": self._source, "buckets": buckets, "altered": self._altered}
        return {**facts, "faster": self._faster} if self._faster else facts

    def batches(self, start: int) -> grain.IterDataset:
        """Returns an iterable over batches `start`, `start` + 1, ... without end, read ahead in one thread."""
        numbers = grain.MapDataset.range(start, 2**31)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return numbers.map(self.__getitem__).to_iter_dataset(options)

    def _window(self, number: int, slot: int, size: tuple[int, int, int]) -> tuple[str, np.ndarray]:
        """Returns the name of a clip, and a window of it."""
        generator, unusable = rng.generator(self._seed, "crops", number, slot), list[BadClip]()
        largest = (0, 0, 0)
        for _ in range(_MOST_DRAWS):
            index = int(generator.integers(len(self._clips)))
            try:
                clip = self._clips[index]
            except BadClip as bad:
                self._note(bad)
                unusable.append(bad)
                continue
            pixels = self._hastened(clip.pixels_THWC, size[0], generator)
            largest = tuple(map(max, largest, clip.pixels_THWC.shape))
            spare = [have - want for have, want in zip(pixels.shape, size, strict=False)]
            if min(spare) >= 0:
                corner = [int(generator.integers(room + 1)) for room in spare]
                window = pixels[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))]
                return clip.source_id, alter(window, generator) if generator.random() < self._altered else window
        raise DataError(_no_window(size, largest, unusable))

    def _hastened(self, pixels_THWC: np.ndarray, frames: int, generator: np.random.Generator) -> np.ndarray:
        """Returns the frames that a window of so many is cut of: all, or of a share of the clips every second one."""
        # Nothing is drawn where no window is faster, so that the windows are those of before there was this.
        if self._faster and frames > 1 and len(pixels_THWC) >= 2 * frames - 1 and generator.random() < self._faster:
            return pixels_THWC[::2]
        return pixels_THWC

    def _note(self, bad: BadClip) -> None:
        if bad.source_id not in self._bad:
            self._bad[bad.source_id] = bad.reason
            logging.warning("skipped %s", bad)


def _no_window(size: tuple[int, ...], largest: tuple[int, ...], unusable: list[BadClip]) -> str:
    """Returns why no clip drawn gave a window, of which the largest had so many frames, rows and columns."""
    if len(unusable) == _MOST_DRAWS:
        return f"none of {_MOST_DRAWS} clips drawn can be used, such as {unusable[0]}: repair or replace them"
    damaged = f" ({len(unusable)} of them cannot be used, such as {unusable[0]})" if unusable else ""
    frames, height, width = largest
    images = ", and windows of 1 frame alone where all are images" if frames == 1 else ""
    window = f"a window of {size[0]} frames of {size[1]}x{size[2]} px"
    return (
        f"none of {_MOST_DRAWS} clips drawn{damaged} holds {window}, they have up to {frames} of {height}x{width} px: "
        f"make the buckets smaller or the clips larger{images}"
    )
