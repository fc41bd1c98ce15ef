"""How long a run will take on this machine, before it begins: its arithmetic over what the machine can do.

The arithmetic is counted (`models/flops.py`; of the autoencoder, in its programs before they are compiled), the speed
of the machine is measured in a fraction of a second. What no count gives, shares and seconds below, was measured on one
machine, so the result is rough; `RunProgress` corrects it as the run proceeds.
"""

import dataclasses
import math
import timeit

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from sora_jax.checkpoints.retention import find_steps
from sora_jax.core.mesh import current_platform
from sora_jax.core.precision import compute_dtype
from sora_jax.experiment.loading import solver_config
from sora_jax.experiment.programs import Program, codec_programs, solver_evaluations, work_of_rows
from sora_jax.experiment.settings import Settings
from sora_jax.experiment.stage_settings import STAGE_KINDS, AutoencoderStage, PrepareStage, StageConfig
from sora_jax.models import flops
from sora_jax.preparation.encode import Share
from sora_jax.train.progress import Part
from sora_jax.train.workdir import Workdir
from sora_jax.video import shapes

EVALUATION = "evaluation"
# Of the autoencoder, of held-out prompts, of tasks.
JUDGEMENTS = 3
# Share of the speed of a large product of matrices that programs of a kind of stage reach. On CPU as in the base run;
# what such models are said to reach on accelerators was never measured here.
_REACHED = {
    "cpu": {"autoencoder": 0.33, "prepare": 0.2, "diffusion": 0.23},
    "gpu": {"autoencoder": 0.3, "prepare": 0.2, "diffusion": 0.3},
    "tpu": {"autoencoder": 0.3, "prepare": 0.2, "diffusion": 0.4},
}
# Seconds that a step takes at least, where the device waits for the host.
_LEAST_STEP = {"cpu": 0.0, "gpu": 0.005, "tpu": 0.005}
# Seconds to trace and compile the programs of a part and to load what it needs, and the same where they lie compiled in
# the cache; on a host on which `_plain_work` takes `_PLAIN_SECONDS`.
_ONCE = {"autoencoder": (55.0, 22.0), "prepare": (15.0, 8.0), "diffusion": (30.0, 12.0), EVALUATION: (25.0, 12.0)}
_PLAIN_SECONDS = 0.0019
# Side of the product that is measured.
_SIDE = {"cpu": 1024, "gpu": 8192, "tpu": 8192}
# How often `evaluation.tasks` videos are made: for each task, and for sizes and durations never seen.
_TASKS = 13


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """What a machine can do.

    Attributes:
      platform: Of its devices.
      product: FLOP/s of large products of matrices on all devices of the run.
      host: Speed of plain programs such as a compiler, that of the machine of `_PLAIN_SECONDS` being 1.
      compiled: Whether programs lie compiled in the cache.
    """

    platform: str
    product: float
    host: float
    compiled: bool

    def seconds(self, kind: str, work: float) -> float:
        """Returns how long `work` FLOPs take in one program of a kind of stage."""
        return max(work / self.product / _REACHED[self.platform][kind], _LEAST_STEP[self.platform])

    def once(self, kind: str) -> float:
        """Returns how long it takes to compile what a part of a kind needs."""
        return _ONCE[kind][self.compiled] / self.host


def measure_speed(settings: Settings, mesh: Mesh, *, compiled: bool) -> Speed:
    """Returns the speed of this machine; it takes some tenths of a second."""
    platform = current_platform() if current_platform() in _REACHED else "gpu"
    side = _SIDE[platform]
    matrix = jnp.ones((side, side), compute_dtype(settings.precision), device=jax.local_devices()[0])
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    fastest = min(timeit.repeat(lambda: product(matrix, matrix).block_until_ready(), number=1, repeat=5))
    # The devices of a process on CPUs are threads of the same cores.
    devices = jax.process_count() if platform == "cpu" else mesh.size
    return Speed(
        platform=platform,
        product=devices * 2 * side**3 / fastest,
        host=_PLAIN_SECONDS / min(timeit.repeat(_plain_work, number=1, repeat=5)),
        compiled=compiled,
    )


def _plain_work() -> None:
    sorted(map(str, range(20_000)))


def expected_parts(
    settings: Settings, mesh: Mesh, workdir: Workdir, speed: Speed, *, clips: int, until: str | None
) -> list[Part]:
    """Returns the stages of a run over `clips` clips, those after `until` left out, and its evaluation.

    What is done according to the workdir is marked as such.
    """
    kinds, finished = list(STAGE_KINDS), workdir.facts()["stages"]
    names = [
        name for name in settings.run if until is None or kinds.index(settings.stages[name].kind) <= kinds.index(until)
    ]
    work, parts = _Work(settings, mesh), []
    for name in names:
        part = work.part(name, settings.stages[name], speed, clips=clips)
        if name in finished:
            part = dataclasses.replace(part, took=float(finished[name]["seconds"]))
        else:
            part = dataclasses.replace(part, done=min(_done(workdir, settings.stages[name], name), part.total))
        parts.append(part)
    return [*parts, work.evaluation(speed)] if until is None else parts


def _done(workdir: Workdir, stage: StageConfig, name: str) -> int:
    """Returns how many steps of a stage are saved, or clips encoded by this process."""
    if isinstance(stage, PrepareStage):
        mine = f"part{jax.process_index():03d}of"
        return stage.clips_per_shard * len(list(workdir.prepared().glob(f"{mine}*.index.npz")))
    return max(find_steps(epath.Path(workdir.checkpoints(name))), default=0)


class _Work:
    """The arithmetic of a run's programs, FLOPs."""

    def __init__(self, settings: Settings, mesh: Mesh):
        self._settings = settings
        encode, decode = (_flops_of_pixel(one) for one in codec_programs(settings, mesh))
        self._encode, self._decode = encode, decode

    def part(self, name: str, stage: StageConfig, speed: Speed, *, clips: int) -> Part:
        """Returns what is expected of a stage."""
        settings, once = self._settings, speed.once(stage.kind)
        if isinstance(stage, AutoencoderStage):
            both = 3 * (self._encode + self._decode)  # the backward pass multiplies twice where the forward pass does
            steps = [speed.seconds(stage.kind, both * math.prod(one)) for one in stage.crops.buckets]
            each = sum(steps) / len(steps)
            return Part(name=name, total=stage.steps, unit="steps", each=each, once=once)
        if isinstance(stage, PrepareStage):
            mine = Share(index=jax.process_index(), count=jax.process_count())
            total = len(mine.of(clips, chunk=stage.clips_per_shard))
            each = speed.seconds(stage.kind, stage.batch * self._pixels() * self._encode) / stage.batch
            return Part(name=name, total=total, unit="clips", each=each, once=once)
        images = stage.mix.images / (stage.mix.images + stage.mix.videos)
        each = sum(share * speed.seconds(stage.kind, self._step(size)) for share, size in _sizes(settings, images))
        once += settings.log.samples_per_stage * self._sampling(len(settings.sampling.prompts), speed)
        return Part(name=name, total=stage.steps, unit="steps", each=each, once=once)

    def evaluation(self, speed: Speed) -> Part:
        """Returns what is expected of the evaluation."""
        settings, config = self._settings, self._settings.evaluation
        seconds = config.clips * speed.seconds("prepare", self._pixels() * (self._encode + self._decode))
        if settings.data.source == "shapes":
            seconds += self._sampling(config.prompts, speed) + _TASKS * self._sampling(config.tasks, speed)
        each = seconds / JUDGEMENTS
        return Part(name=EVALUATION, total=JUDGEMENTS, unit="judgements", each=each, once=speed.once(EVALUATION))

    def _pixels(self) -> float:
        """Returns the pixels of a clip, on average."""
        return sum(share * math.prod(size) for share, size in _sizes(self._settings))

    def _rows(self, size: shapes.Size) -> flops.Work:
        """Returns the work of a batch of rows full of clips of one size."""
        settings = self._settings
        frames, height, width = (-(-side // step) for side, step in zip(size, settings.token_stride, strict=True))
        tokens = min(max(frames * height * width, 1), settings.packing.tokens)
        return work_of_rows(settings, segment_tokens=tokens)

    def _step(self, size: shapes.Size) -> float:
        """Returns the FLOPs of a train step on clips of one size."""
        settings, text = self._settings, self._settings.text_encoder
        return flops.step_flops(settings.transformer, text, patch_width=settings.patch_width, work=self._rows(size))

    def _sampling(self, videos: int, speed: Speed) -> float:
        """Returns the seconds of making videos of the size of samples."""
        settings = self._settings
        size = (settings.sampling.frames, *settings.sampling.size)
        work = self._rows(size)
        once = flops.transformer_flops(
            settings.transformer, text_dim=settings.text_encoder.width, patch_width=settings.patch_width, work=work
        )
        batches = -(-videos // work.segments)
        solving = speed.seconds("diffusion", once * solver_evaluations(solver_config(settings)))
        return batches * solving + videos * speed.seconds("prepare", math.prod(size) * self._decode)


def _flops_of_pixel(program: Program) -> float:
    """Returns the FLOPs of a program of the autoencoder over the pixels that it works on."""
    cost = program.lower().cost_analysis() or {}
    pixels = math.prod(program.facts[name] for name in ("clips", "frames", "height", "width"))
    return float(cost.get("flops", 0.0)) / pixels


def _sizes(settings: Settings, images: float | None = None) -> list[tuple[float, shapes.Size]]:
    """Returns (share, size) of clips, of which the share `images`, None: as many as there are, has one frame.

    Of clips that are not drawn nothing is known before they are read: they are taken to be as large as samples.
    """
    drawn, sampling = settings.shapes, settings.sampling
    sides, lengths = drawn.sides, drawn.frames
    if settings.data.source != "shapes":
        sides, lengths = (sampling.size,), (sampling.frames,)
    share = (drawn.image_share if settings.data.source == "shapes" else 0.0) if images is None else images
    found = [(share / len(sides), (1, *side)) for side in sides]
    return found + [((1 - share) / len(sides) / len(lengths), (n, *side)) for side in sides for n in lengths]
