"""A video while a task makes it: what is given encoded, canvases laid out, frames decoded and passed on.

Letters: t h w token grid, T H W C pixels or latent.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Self

import numpy as np
from absl import logging

from sora_jax.generate.canvas import Canvas, ContextPart, Turn
from sora_jax.generate.control import window_of
from sora_jax.generate.job import Job
from sora_jax.generate.limits import ModelLimits
from sora_jax.models.codec import Codec
from sora_jax.models.vision.shown import Shower
from sora_jax.video import latents
from sora_jax.video.parts import ContextClip

# Yields canvases and is sent their latents, normalised.
Making = Generator[Canvas, np.ndarray, None]


class VideoBuilder:
    """A job while it is made.

    Args:
      job: What to make.
      limits: Of the model.
      codec: Its autoencoder.
      emit: Takes the frames that are done, uint8 (n, H, W, 3), in order.
      shower: Encodes what the model is shown; None: it is shown nothing.
    """

    def __init__(
        self,
        job: Job,
        limits: ModelLimits,
        codec: Codec,
        emit: Callable[[np.ndarray], None],
        shower: Shower | None = None,
    ):
        self.job, self.limits, self.emit = job, limits, emit
        self.notes: dict[str, float] = {}
        self._codec, self._shower = codec, shower
        self._windows = itertools.count()
        self._first_statistics: np.ndarray | None = None

    def part(self, job: Job, emit: Callable[[np.ndarray], None]) -> Self:
        """Returns the builder of a job that is a part of this one: its canvases have noise of their own."""
        part = type(self)(job, self.limits, self._codec, emit, self._shower)
        part.notes, part._windows = self.notes, self._windows
        return part

    @property
    def overlap(self) -> int:
        """Frames that a window keeps of those before it, or, less `first`, of those after it: not all that it holds."""
        return self.limits.shared(self._at_once)

    @property
    def window(self) -> int:
        """Token frames of a canvas at most."""
        return self.limits.window_tokens(self._at_once)

    @property
    def _at_once(self) -> tuple[int, int]:
        """Height and width of a canvas."""
        return self.limits.refined_at_once(self.job.size) if self.job.enlarges else self.job.size

    def opening(self, past: np.ndarray | None) -> tuple[int, np.ndarray | None]:
        """Returns how many frames of `past` a window begins with, and their latent; (0, None) where there is none."""
        if past is None:
            return 0, None
        kept = self.kept(len(past))
        return kept, self.encode(past[-kept:])

    def encode(self, clip_THWC: np.ndarray) -> np.ndarray:
        """Returns the normalised latent of a clip of a legal number of frames."""
        raw = self._codec.encode(clip_THWC[None])
        return latents.normalise(raw, self._codec.mean_C, self._codec.scale_C)[0]

    def encode_later(self, clip_THWC: np.ndarray) -> np.ndarray:
        """Returns the latent of frames, a multiple of `step`, that something comes before."""
        before = np.repeat(clip_THWC[:1], self.limits.first, axis=0)
        return self.encode(np.concatenate([before, clip_THWC]))[self.limits.patch[0] :]

    def decode(self, latent_THWC: np.ndarray) -> np.ndarray:
        """Returns the clip of a latent, and notes how far it has drifted from the first one."""
        statistics = np.stack([latent_THWC.mean(axis=(0, 1, 2)), latent_THWC.std(axis=(0, 1, 2))])
        if self._first_statistics is None:
            self._first_statistics = statistics
        else:
            drift = float(np.sqrt(np.mean(np.square(statistics - self._first_statistics))))
            self.notes["drift"] = max(drift, self.notes.get("drift", 0.0))
        return self._codec.decode(latent_THWC[None])[0]

    def given(self, clip_THWC: np.ndarray, *, before: np.ndarray | None = None) -> np.ndarray:
        """Returns given frames as they come back: through the autoencoder, or as they are if that was asked for.

        Frames that come `before` them go through it as well: alone, a clip comes back a little beside where it was.
        """
        if self.job.request.keep_pixels:
            return clip_THWC
        past = clip_THWC[:0] if before is None or not len(before) else before[-self.kept(len(before)) :]
        held = np.concatenate([past, clip_THWC])
        least = self.limits.first + self.limits.step
        rest = (len(held) - self.limits.first) % self.limits.step
        if not rest or len(held) < least or len(clip_THWC) < self.limits.step:
            return self._reconstructed(held)[len(past) :]
        # Filled up with repeats, the last frames would come back behind their place: they are taken from the end alone.
        end = self._reconstructed(held[-max(least, self.kept(len(held))) :])
        return np.concatenate([self._reconstructed(held[:-rest]), end[-rest:]])[len(past) :]

    def _reconstructed(self, clip_THWC: np.ndarray) -> np.ndarray:
        """Returns frames through the autoencoder, filled up for it."""
        return self._codec.reconstruct(self.filled(clip_THWC)[None])[0, : len(clip_THWC)]

    def canvas(
        self,
        token_frames: int,
        *,
        head: np.ndarray | None = None,
        tail: np.ndarray | None = None,
        content: np.ndarray | None = None,
        known_thw: np.ndarray | None = None,
        strength: float = 1.0,
        turn: Turn | None = None,
        start: int = 0,
        beside: Sequence[ContextPart] = (),
    ) -> Canvas:
        """Returns the next canvas: latents that its `head` and `tail` keep, `content` for what the rest starts from.

        `start` is the frame of the whole video that is its first one, for what controls it; `beside` is given, too.
        """
        frames = self.limits.first + (token_frames - 1) * self.limits.step
        grid = self.limits.grid(frames, self.job.size)
        patch, channels = self.limits.patch, self._codec.config.channels
        latent = np.zeros((*(g * p for g, p in zip(grid, patch, strict=True)), channels), np.float32)
        known = np.zeros(grid, bool) if known_thw is None else known_thw.copy()
        if content is not None:
            latent[:] = content
        if head is not None:
            latent[: len(head)], known[: len(head) // patch[0]] = head, True
        if tail is not None:
            latent[-len(tail) :], known[len(known) - len(tail) // patch[0] :] = tail, True
        guidance = self.job.request.guidance
        if guidance is None and known.any():
            # Between two subjects, where no clip of the data is, guidance makes the one jump into the other.
            guidance = 1.0 if turn is not None else self.limits.known_guidance
        return Canvas(
            prompt=self.job.prompts[0],
            negative=self.job.negative,
            grid=grid,
            fps=self.job.fps,
            seed=self.job.request.seed,
            window=next(self._windows),
            latent_THWC=latent,
            known_thw=known,
            strength=strength,
            guidance=guidance,
            turn=turn,
            context=(*self._context(start, frames), *beside),
        )

    def _context(self, start: int, frames: int) -> tuple[ContextPart, ...]:
        """Returns what controls so many frames from `start` on; what finds nothing is left out and told."""
        parts = []
        for control in self.job.controls:
            window_THWC = window_of(control, start, frames)
            made = self.limits.controls[control.kind](window_THWC, self.job.fps, as_is=control.as_is)
            if made is None:
                said = "the control %s finds nothing in frames %d to %d of %s: they are made without it"
                logging.warning(said, control.kind, start, start + frames - 1, control.name)
                continue
            latent = self.encode(made.pixels_THWC)
            clip = ContextClip(latent_THWC=latent, fps=made.fps, role=made.role, scale=made.scale)
            parts.append(ContextPart(clip=clip, level=control.level))
        return tuple(parts)

    def showing(self, token_frames: int, first_THWC: np.ndarray, last_THWC: np.ndarray | None) -> Canvas:
        """Returns the next canvas of a model that is shown frames: its first one, and maybe its last (T = 1)."""
        assert self._shower is not None
        frames = self.limits.first + (token_frames - 1) * self.limits.step
        shown = self._shower.of_frames(frames, first_THWC[0], None if last_THWC is None else last_THWC[0])
        return dataclasses.replace(self.canvas(token_frames), shown=shown)

    def longer(self, frames: int) -> int:
        """Returns the least number of frames, not under `frames`, that a canvas can have."""
        return self.limits.first + max(0, math.ceil((frames - self.limits.first) / self.limits.step)) * self.limits.step

    def filled(self, clip_THWC: np.ndarray) -> np.ndarray:
        """Returns a clip whose last frame is repeated up to a number of frames that a canvas can have."""
        missing = self.longer(len(clip_THWC)) - len(clip_THWC)
        return np.pad(clip_THWC, ((0, missing), (0, 0), (0, 0), (0, 0)), "edge")

    def kept(self, frames: int) -> int:
        """Returns how many of `frames` frames a window begins with."""
        first, step = self.limits.first, self.limits.step
        return first + (min(self.overlap, frames) - first) // step * step
