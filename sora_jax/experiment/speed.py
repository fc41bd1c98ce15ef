"""What a machine can do and what the programs of a run cost on it: the arithmetic of `estimate.py`.

FLOPs are counted (`models/flops.py`; of the autoencoder, in its programs before they are compiled), the speed of the
machine is measured in a fraction of a second. What no count gives, shares and seconds, was measured on one machine.
"""

import dataclasses
import math
import timeit
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sora_jax.core.compiling import holds_programs
from sora_jax.core.mesh import current_platform
from sora_jax.core.precision import compute_dtype
from sora_jax.experiment.codec_programs import codec_programs
from sora_jax.experiment.loading import solver_config
from sora_jax.experiment.programs import Program, solver_evaluations, work_of_rows
from sora_jax.experiment.schema import Settings
from sora_jax.models import flops
from sora_jax.video import shapes

# Share of the speed of a large product of matrices that programs reach, by platform. On CPU as in the base run, on a
# GPU the transformer as in docs/results.md; the others are what such models are said to reach.
Reached = Mapping[str, float]
CONVOLUTIONS: Reached = {"cpu": 0.28, "gpu": 0.2, "tpu": 0.2}
CONVOLUTIONS_TRAINED: Reached = {"cpu": 0.36, "gpu": 0.3, "tpu": 0.3}
TRANSFORMER: Reached = {"cpu": 0.23, "gpu": 0.29, "tpu": 0.4}
# Seconds that a step takes at least, where the device waits for the host.
_LEAST_STEP = {"cpu": 0.0, "gpu": 0.005, "tpu": 0.005}
# Seconds of `_plain_work` on the host on which the seconds to compile were measured.
_PLAIN_SECONDS = 0.0019
# Side of the product that is measured.
_SIDE = {"cpu": 1024, "gpu": 8192, "tpu": 8192}


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

    def seconds(self, work: float, reached: Reached) -> float:
        """Returns how long `work` FLOPs take in one program that reaches such shares."""
        return max(work / self.product / reached[self.platform], _LEAST_STEP[self.platform])

    def once(self, compiling: float, loading: float) -> float:
        """Returns how long it takes to make programs ready that take `compiling` s, or `loading` s from the cache."""
        return (loading if self.compiled else compiling) / self.host


def measure_speed(settings: Settings, devices: int, *, compiled: bool) -> Speed:
    """Returns the speed of so many devices of this machine; it takes some tenths of a second."""
    platform = current_platform() if current_platform() in _SIDE else "gpu"
    side = _SIDE[platform]
    matrix = jnp.ones((side, side), compute_dtype(settings.precision), device=jax.local_devices()[0])
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    fastest = min(timeit.repeat(lambda: product(matrix, matrix).block_until_ready(), number=1, repeat=5))
    # The devices of a process on CPUs are threads of the same cores.
    devices = jax.process_count() if platform == "cpu" else devices
    return Speed(
        platform=platform,
        product=devices * 2 * side**3 / fastest,
        host=_host_speed(),
        compiled=compiled,
    )


def compile_seconds(compiling: tuple[float, float], cache: Path | None) -> float:
    """Returns how long programs take here that take so many seconds to compile, or to load from the cache."""
    return compiling[holds_programs(cache)] / _host_speed()


def _host_speed() -> float:
    return _PLAIN_SECONDS / min(timeit.repeat(_plain_work, number=1, repeat=5))


def _plain_work() -> None:
    sorted(map(str, range(20_000)))


class Costs:
    """What the programs of a run cost on a machine of a `speed`.

    `encode` and `decode` are the FLOPs of the autoencoder's two halves for each pixel of a clip.
    """

    def __init__(self, settings: Settings, mesh: Mesh, speed: Speed):
        self.speed = speed
        self._settings = settings
        self.encode, self.decode = (_flops_of_pixel(one) for one in codec_programs(settings, mesh))

    @property
    def pixels(self) -> float:
        """Pixels of a clip, on average."""
        return sum(share * math.prod(size) for share, size in clip_sizes(self._settings))

    def step_seconds(self, images: float) -> float:
        """Returns the seconds of a train step of the transformer where the share `images` of clips has one frame."""
        sizes = clip_sizes(self._settings, images)
        return sum(share * self.speed.seconds(self._step(size), TRANSFORMER) for share, size in sizes)

    def measuring_seconds(self, clips: int, kinds: Iterable[str], forward: Callable[[flops.Work], float]) -> float:
        """Returns the seconds of a forward pass of `forward(work)` FLOPs over so many clips in whole batches.

        They are "images" and "videos" as often as the run has them, of these the `kinds`, or all where it has none.
        """
        if not clips:
            return 0.0
        sizes = [(share, size) for share, size in clip_sizes(self._settings) if share]
        seen = [(share, size) for share, size in sizes if ("images" if size[0] == 1 else "videos") in kinds] or sizes
        filled = [(clips * share / work.segments, work) for share, size in seen for work in (self.work(size),)]
        batches = sum(part for part, _ in filled)
        seconds = sum(part * self.speed.seconds(forward(work), TRANSFORMER) for part, work in filled)
        return seconds * math.ceil(batches) / batches

    def sampling_seconds(self, videos: int) -> float:
        """Returns the seconds of making videos of the size of samples."""
        settings, speed = self._settings, self.speed
        size = (settings.sampling.frames, *settings.sampling.size)
        work = self.work(size)
        once = flops.transformer_flops(
            settings.transformer, text_dim=settings.text_encoder.width, patch_width=settings.patch_width, work=work
        )
        batches = -(-videos // work.segments)
        solving = speed.seconds(once * solver_evaluations(solver_config(settings)), TRANSFORMER)
        return batches * solving + videos * speed.seconds(math.prod(size) * self.decode, CONVOLUTIONS)

    def work(self, size: shapes.Size) -> flops.Work:
        """Returns the work of a batch of rows full of clips of one size."""
        settings = self._settings
        frames, height, width = (-(-side // step) for side, step in zip(size, settings.token_stride, strict=True))
        tokens = min(max(frames * height * width, 1), settings.packing.tokens)
        return work_of_rows(settings, segment_tokens=tokens)

    def _step(self, size: shapes.Size) -> float:
        """Returns the FLOPs of a train step on clips of one size."""
        settings, text = self._settings, self._settings.text_encoder
        return flops.step_flops(settings.transformer, text, patch_width=settings.patch_width, work=self.work(size))


def _flops_of_pixel(program: Program) -> float:
    """Returns the FLOPs of a program of the autoencoder over the pixels that it works on."""
    cost = program.lower().cost_analysis() or {}
    pixels = math.prod(program.facts[name] for name in ("clips", "frames", "height", "width"))
    return float(cost.get("flops", 0.0)) / pixels


def clip_sizes(settings: Settings, images: float | None = None) -> list[tuple[float, shapes.Size]]:
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
