"""A trained run from Python: clips from prompts, scores, latents and back.

    import sora_jax

    run = sora_jax.open_run("runs/base")
    clips = run.sample(["a red circle moves right"], size=(24, 40), frames=9)

Commands, notebooks and servers stand on it. Models are loaded when they are first needed, once.
"""

import dataclasses
import functools
import math
import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sora_jax.core.compiling import use_compilation_cache
from sora_jax.core.config_files import load_config
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.paths import check_writable, expanded
from sora_jax.core.tree import Params
from sora_jax.core.typed import typed, typed_arguments
from sora_jax.diffusion.solvers import METHODS
from sora_jax.experiment import evaluation
from sora_jax.experiment.adapters import read_adapters
from sora_jax.experiment.caption_words import CaptionWords
from sora_jax.experiment.captioners import load_captioner, make_describer
from sora_jax.experiment.compile_times import compiling_told
from sora_jax.experiment.distribution import comparison_of, judge_distribution
from sora_jax.experiment.estimate import COMPILING
from sora_jax.experiment.loading import (
    WEIGHTS,
    Weights,
    check_ema,
    limits_of,
    solver_config,
)
from sora_jax.experiment.machine import free_memory
from sora_jax.experiment.model_settings import warn_of_unheard
from sora_jax.experiment.models import RunModels, step_of
from sora_jax.experiment.public_models import PublicModels
from sora_jax.experiment.session_jobs import AskedSize, jobs_asked
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.wording import word_jobs, word_requests
from sora_jax.generate.captioning import Describer, EncodedClip, WrittenCaption
from sora_jax.generate.denoiser import SolverConfig
from sora_jax.generate.given import as_clip, as_latent
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import Request, Task
from sora_jax.generate.scheduler import Rounds, make_all
from sora_jax.train.workdir import Workdir

# A file, or an array of pixels.
Media = str | os.PathLike[str] | np.ndarray
# Adapters as files, or "own", with their weights, or as texts "FILE:WEIGHT".
Lora = Mapping[Any, float] | Sequence[Any] | os.PathLike[str]


def open_session(
    workdir: str | os.PathLike[str],
    *,
    checkpoint: str | int = "latest",
    weights: Weights = "ema",
    ema: float | None = None,
    devices: Sequence[Any] | None = None,
    lora: Lora = (),
) -> "Session":
    """Returns a run that was trained; see `sora_jax.open_run`."""
    step = step_of(checkpoint)
    if weights not in WEIGHTS:
        raise UserError(f"weights {weights!r} is not one of: {', '.join(WEIGHTS)}")
    ema = typed("ema", ema, float | None)
    check_ema(ema, weights)
    adapters = read_adapters(lora)
    opened = Workdir(expanded(typed("workdir", workdir, str)))
    settings = read_settings(opened.config())
    cache = use_compilation_cache()
    models = RunModels(opened, settings, step=step, weights=weights, ema=ema, mesh=_mesh(devices), adapters=adapters)
    return Session(models, cache=cache)


def open_public(
    model: str | os.PathLike[str],
    *,
    changes: Mapping[str, Any] = types.MappingProxyType({}),
    devices: Sequence[Any] | None = None,
    lora: Lora = (),
) -> "Session":
    """Returns a public model; see `sora_jax.open_model`."""
    config = load_config("configs/base.py")
    config.model = typed("the model", model, str)
    try:
        config.update_from_flattened_dict(dict(changes))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the config has no such key or value: {error}") from error
    settings = read_settings(config)
    warn_of_unheard(config, changes)
    cache = use_compilation_cache()
    return Session(PublicModels(settings, mesh=_mesh(devices), adapters=read_adapters(lora)), cache=cache)


def _mesh(devices: Sequence[Any] | None) -> Mesh | None:
    """Returns the mesh over which weights and work are split; None where there is one device, and none is chosen."""
    if devices is None and jax.device_count() == 1:
        return None
    if not (devices is None or _are_devices(devices)):
        raise UserError(f"devices {devices} are none of jax: give some of jax.devices(), or None for all")
    return make_mesh(MeshConfig(data=1, fsdp=None, sequence=1, tensor=1), devices)


def _are_devices(given: Any) -> bool:
    return isinstance(given, Sequence) and bool(given) and all(isinstance(one, jax.Device) for one in given)


class Session:
    """A run that was trained, opened with `sora_jax.open_run`; for one thread.

    Attributes:
      models: Its models, which load when they are first needed.
      settings: Of the run.
      cache: Folder of compiled programs; None where there is none.
    """

    def __init__(self, models: RunModels, *, cache: Path | None = None):
        self.models, self.settings, self.cache = models, models.settings, cache
        self._caption_words = CaptionWords(models.workdir, models.settings)

    def __reduce__(self) -> str:
        """Raises UserError: models and compiled programs do not go to another process, nor into a file."""
        raise UserError("an opened run cannot be pickled or copied: open it again where it is needed")

    @property
    def limits(self) -> ModelLimits:
        """What the run's model can make, what it makes where nothing is asked for, and the memory there is for it."""
        return dataclasses.replace(limits_of(self.settings), room=free_memory())

    @typed_arguments
    def solver(
        self, *, solver: str | None = None, steps: int | None = None, cache: float | None = None
    ) -> SolverConfig:
        """Returns the configured solver but for what is given; raises UserError for what no solver can be."""
        given = {"method": solver, "steps": steps, "cache": cache}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if steps is not None:
            changes["context_steps"] = None
        if solver not in (None, *METHODS):
            raise UserError(f"solver {solver!r} is not one of: {', '.join(METHODS)}")
        return dataclasses.replace(solver_config(self.settings), **changes)

    def described(self, solver: SolverConfig, requests: Sequence[Request]) -> str:
        """Returns which public model this is and how a solver makes videos with it, in lines; empty for a run."""
        if (files := self.settings.public) is None:
            return ""
        own = f"{solver.guidance.scale:g}"
        if solver.experts is not None:
            own += f", {solver.experts[1]:g} below level {solver.experts[0]:g}"
        scales = dict.fromkeys(own if one.guidance is None else f"{one.guidance:g}" for one in requests)
        negative = self.limits.negative
        negatives = dict.fromkeys(negative if one.negative is None else one.negative for one in requests)
        usual = files.variant.fps
        rates = dict.fromkeys(one.fps for one in requests if one.fps not in (None, usual))
        way = "" if solver.grid is None else f" on the grid {solver.grid.name} with shift {solver.grid.shift:g}"
        return "\n".join(
            [
                f"{files.folder} is {files.variant.title} ({files.name})",
                *files.notes,
                f"{solver.steps} steps of {solver.method}{way}, guidance {' and '.join(scales)}",
                *(f"negative prompt: {one or 'none'}" for one in negatives),
                *(
                    f"{rate:g} frames per second, as asked for: the model counts frames, of which {usual:g} were a "
                    "second in its training"
                    for rate in rates
                ),
            ]
        )

    def worded(self, requests: Sequence[Request]) -> list[Request]:
        """Returns the requests with prompts spelled as captions of the run are, after saying what it never learnt."""
        return word_requests(self._caption_words, requests)

    def sample(
        self,
        prompt: str | Sequence[str] = (),
        *,
        task: Task = "text",
        size: AskedSize | list[AskedSize] | None = None,
        frames: int | Sequence[int] | None = None,
        seconds: float | str | Sequence[float | str] | None = None,
        seed: int | Sequence[int] = 0,
        image: Media | None = None,
        last_image: Media | None = None,
        video: Media | Sequence[Media] | None = None,
        mask: Media | None = None,
        control_video: Media | Sequence[Media] | None = None,
        reference: Media | None = None,
        solver: str | None = None,
        steps: int | None = None,
        cache: float | None = None,
        **options: Any,
    ) -> list[np.ndarray]:
        """Returns clips, uint8 (T, H, W, 3): one for each prompt of task "text", else one of all prompts.

        Size, frames, seconds and seed are one for all prompts, or a list of one for each. What is left open is as in
        the config of the run, or as what is given has it.

        Args:
          prompt: What to show.
          task: How a clip is made; docs/sampling.md has them all.
          size: Height and width, px; `seed` of the noise.
          frames: Of a clip, 1 for an image; of extend, loop and connect: to add.
          seconds: Instead of frames; of extend "+4" forward, "-4" backward, "-4,+4" both.
          image: To animate: a file, or uint8 (H, W, 3); `last_image` what such a video ends with.
          video: Files, or uint8 (T, H, W, 3) at `fps` (to upscale, interpolate `limits.fps`) a second; two to connect.
          control_video: As `video`, one for each kind of `control`; `reference`: as `image`, of what is to be seen.
          mask: White where fill makes something new: a file, uint8 as of `video`, or bool (T, H, W) or (H, W).
          solver: Of `solvers.METHODS`, with `steps`; `cache`: change of the modulation up to which they reuse work.
          **options: negative, fps, at, strength, scale, refine, guidance, control, boxes, strength_of_control and
            keep_pixels of `generate.request.Request`.

        Raises UserError for what the model cannot make, and for files that cannot be read.
        """
        asked = {"task": task, "size": size, "frames": frames, "seconds": seconds, "seed": seed, **options}
        given = {"image": image, "last_image": last_image, "video": video, "mask": mask, "reference": reference}
        given["control_video"] = control_video
        config, limits = self.solver(solver=solver, steps=steps, cache=cache), self.limits
        jobs = jobs_asked(limits, prompt, given, **asked)
        jobs = word_jobs(self._caption_words, jobs, limits)
        self.models.read_texts(text for job in jobs for text in (*job.prompts, job.negative))
        sampler = self.models.sampler(config, videos=len(jobs))
        return [made.clip for made in make_all(sampler, self.models.params, jobs, limits)]

    @typed_arguments
    def rounds(self, *, most: int = 64, **solver: Any) -> Rounds:
        """Returns what makes jobs that join and leave at any time, up to `most` at once; `solver` as of `solver`.

        `generate.job.read_job` makes a job of a request. A batch is as large as what is under way needs: the first of
        each size, of which there are few, compiles a program.
        """
        if most < 1:
            raise UserError(f"most is {most}: it must be at least 1")
        return Rounds(self.models.sampler(self.solver(**solver)), self.models.params, self.limits, most=most)

    @typed_arguments
    def describe(
        self, clips: Sequence[np.ndarray], *, fps: float | None = None, prefix: str = "", seed: int = 0
    ) -> list[WrittenCaption]:
        """Returns a caption of each uint8 clip (T, H, W, 3), written by the run's captioner (docs/captions.md).

        Args:
          clips: Of sizes and lengths that `encode` takes.
          fps: Frames per second of all of them; None: as of samples.
          prefix: What each caption begins with; it is no part of what is returned.
          seed: Of captions that are drawn.

        Raises UserError where the run has no captioner, and for clips that no row holds.
        """
        if fps is not None and not 0 < fps < math.inf:
            raise UserError(f"{fps:g} frames per second must be more than 0")
        params, describer = self._captioner
        rate = self.settings.sampling.fps if fps is None else fps
        seen = [EncodedClip(latent_THWC=self.encode(clip_THWC), fps=rate) for clip_THWC in clips]
        return describer(params, seen, prefix=prefix, seed=seed)

    @functools.cached_property
    def _captioner(self) -> tuple[Params, Describer]:
        params, _, _ = load_captioner(self.models.workdir, self.settings)
        return params, make_describer(self.settings, rows=self.settings.packing.rows)

    def encode(self, clip_THWC: np.ndarray) -> np.ndarray:
        """Returns the latent, float32 (t, h, w, C) of about unit variance, of a uint8 clip (T, H, W, 3).

        Raises UserError for a size or a number of frames that the strides do not divide.
        """
        return self.models.encode(as_clip("the clip", clip_THWC))

    def decode(self, latent_THWC: np.ndarray) -> np.ndarray:
        """Returns the uint8 clip (T, H, W, 3) of a latent as of `encode`; raises UserError for what is none."""
        return self.models.codec.decode(as_latent(latent_THWC, self.settings.autoencoder.channels)[None])[0]

    @typed_arguments
    def evaluate(
        self,
        part: evaluation.EvaluationPart = "all",
        *,
        data: str | None = None,
        clips: int | None = None,
        draws: int | None = None,
        guidance: float | None = None,
        captioner: str | None = None,
        lpips: str | None = None,
        video_features: str | None = None,
        reference: str | None = None,
        samples: int | None = None,
        samples_from: str | None = None,
        image_features: str | None = None,
        text_features: str | None = None,
        **solver: Any,
    ) -> dict[str, Any]:
        """Returns scores by part, as docs/evaluation.md explains them, after printing and writing them to the workdir.

        Args:
          part: Of the run to judge.
          data: A folder to judge the autoencoder on, or "shapes"; None: the run's own clips.
          clips: How many of them, or how many for each task; None: as in the config.
          draws: Samples of each prompt, `guidance` by text, `captioner` of the part "expand"; None: as in the config.
          lpips: File of weights of LPIPS, `video_features` of I3D or VideoMAE; None: not measured, a random network.
          reference: Of the part "distribution": a folder of real clips; None or "heldout": clips that were held out.
          samples: Clips of each set at most; None: 2,048.
          samples_from: A folder of clips to judge; None: the run makes them.
          image_features: File of weights of a network of images; None: a random one. `text_features`: of CLIP, or none.
          **solver: solver, steps and cache, as of `sample`.

        Raises UserError for what this run has not, and for files that cannot be read.
        """
        self.models.check_run()
        used = {"clips": clips, "draws": draws, "captioner": captioner, "lpips": lpips}
        evaluation.check_asked(part, data, self.models.weights, ema=self.models.ema, **used)
        sets = {"reference": reference, "samples": samples, "samples_from": samples_from}
        looks = {"image_features": image_features, "text_features": text_features}
        compared = comparison_of(part, video_features=video_features, **sets, **looks)
        self.solver(**solver)  # says what is wrong with it
        check_writable(self.models.workdir.path / "evaluation.json")
        settings = evaluation.changed(self.settings, draws=draws, guidance=guidance, captioner=captioner, **solver)
        if compared is not None:
            return judge_distribution(self.models, settings, compared)
        asked: Any = {"count": clips, "networks": evaluation.load_networks(lpips, video_features)}
        if data is not None:
            return evaluation.evaluate_data(self.models, settings, data, **asked)
        work = compiling_told("evaluation", COMPILING, settings, self.cache)
        return evaluation.evaluate(self.models, settings, part=part, work=work, **asked)
