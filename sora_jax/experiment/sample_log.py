"""What a run shows as it trains: the same clips reconstructed, the same prompts sampled, side by side over time."""

import collections
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sora_jax.core.distributed import is_first
from sora_jax.core.files import write_atomically
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.fitting import FittedSource
from sora_jax.data.media.writer import ClipFormat, open_clip, write_clip
from sora_jax.generate.job import Job
from sora_jax.generate.write import contact_sheet
from sora_jax.models.codec import Codec
from sora_jax.train.metrics import MetricsWriter
from sora_jax.train.workdir import Workdir


def evenly(length: int, count: int) -> list[int]:
    """Returns up to `count` indices below `length`, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(int)).tolist()


def choose_clips(source: FittedSource, *, count: int, sizes: int) -> list[Clip]:
    """Returns up to `count` clips spread evenly over the source, those of the `sizes` commonest sizes.

    A codec is compiled for each size, and clips of a folder may all differ. Clips that cannot be used are passed over.
    """
    clips = []
    for index in evenly(len(source), count):
        try:
            clips.append(source[index])
        except BadClip:
            continue  # the prepare stage names it
    common = dict(collections.Counter(clip.pixels_THWC.shape for clip in clips).most_common(sizes))
    return [clip for clip in clips if clip.pixels_THWC.shape in common]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleLog:
    """Where what a stage makes at a step is shown: files of the workdir, and TensorBoard. The first process writes."""

    workdir: Workdir
    metrics: MetricsWriter
    stage: str
    step: int

    def reconstructions(self, codec: Codec, clips: list[Clip]) -> None:
        """Shows each clip beside its reconstruction; every process helps."""
        names = {}
        for number, clip in enumerate(clips):
            name = f"clip_{number:02d}"
            names[name] = clip.captions[0] if clip.captions else clip.source_id
            pixels_THWC = clip.pixels_THWC
            self.clip(name, np.concatenate([pixels_THWC, codec.reconstruct(pixels_THWC[None])[0]], axis=2), clip.fps)
        self.words(names)

    def samples(self, jobs: list[Job], clips: list[np.ndarray], before: list[np.ndarray]) -> None:
        """Shows the clip that each job made, and those that were made without what is trained, where there are any."""
        names = {}
        for number, (job, pixels_THWC) in enumerate(zip(jobs, clips, strict=True)):
            name = f"prompt_{number:02d}"
            (names[name],) = job.prompts
            self.clip(name, pixels_THWC, job.fps)
            if before:
                names[f"{name}_without"] = f"{names[name]} (without the adapter)"
                self.clip(f"{name}_without", before[number], job.fps)
        self.words(names)

    def described(self, clips: list[np.ndarray], rates: list[float], texts: list[str]) -> None:
        """Shows clips, of so many frames per second, with what is said of each."""
        names = {f"clip_{number:02d}": text for number, text in enumerate(texts)}
        for name, pixels_THWC, fps in zip(names, clips, rates, strict=True):
            self.clip(name, pixels_THWC, fps)
        self.words(names)

    def clip(self, name: str, pixels_THWC: np.ndarray, fps: float) -> None:
        """Shows uint8 (T, H, W, 3) under a name: as a picture where it has one frame."""
        if not is_first():
            return
        folder = self.workdir.samples(self.stage, self.step)
        folder.mkdir(parents=True, exist_ok=True)
        if len(pixels_THWC) == 1:
            write_clip(folder / f"{name}.png", pixels_THWC, fps=fps)
            self.metrics.write_image(self.stage, self.step, name, pixels_THWC[0])
        else:
            write_clip(folder / f"{name}.gif", pixels_THWC, fps=fps)
            self.metrics.write_video(self.stage, self.step, name, pixels_THWC, fps)

    def words(self, names: dict[str, str]) -> None:
        """Writes what the clips are that a stage shows, such as their prompts, by name."""
        if is_first():
            path = self.workdir.path / "samples" / self.stage / "prompts.json"
            write_atomically(path, json.dumps(names, indent=2, ensure_ascii=False))


def show_sheet(folder: Path, name: str, clips: list[np.ndarray], prompts: Sequence[str], *, fps: float) -> None:
    """Writes `clips` as one sheet, `name`.gif, that says in its comment which `prompts` they are of, row by row."""
    if is_first():
        with open_clip(folder / f"{name}.gif", ClipFormat(fps=fps, facts={"prompt": list(prompts)})) as write:
            write(contact_sheet(clips))
