"""The programs of a run with shapes in place of arrays, ready to be compiled for a machine that is not there.

They are the very functions that training, sampling, encoding and decoding run. Letters as in `data/packing/packs.py`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from sora_jax.core import sharding
from sora_jax.core.errors import UserError
from sora_jax.core.precision import compute_dtype
from sora_jax.core.tree import Params, abstract_model
from sora_jax.data.packing.packs import texts_of
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.experiment import activations
from sora_jax.experiment.loading import build_generator, limits_of, pack_layout, solver_config
from sora_jax.experiment.schema import Settings
from sora_jax.generate.canvas import CanvasBatch
from sora_jax.generate.denoiser import SolverConfig
from sora_jax.generate.job import read_job
from sora_jax.generate.request import Request
from sora_jax.generate.row_sizes import RowSize, longer_rows
from sora_jax.generate.sampler import make_solver
from sora_jax.models import flops
from sora_jax.models.text.network import MOST_TOKENS, pass_of
from sora_jax.video import shapes

BatchShapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One program to plan.

    Attributes:
      name: In words.
      lower: Returns the lowered program; called with the mesh set.
      held: Its arguments by kind, shapes with shardings: "parameters", "moments", "ema", "batch".
      kept: Returns the bytes of a device that the forward pass keeps for the backward pass; None where there is none.
      flops: Model FLOPs of one run on all devices together; None where no formula says.
      recomputed: FLOPs done again because of rematerialisation, at least, on all devices together.
      facts: What it works on, by name.
      times: How often it runs, one after the other, for what is asked for.
    """

    name: str
    lower: Callable[[], Any]
    held: dict[str, Any]
    kept: Callable[[], float] | None
    flops: float | None
    recomputed: float
    facts: dict[str, Any]
    times: int = 1


def work_of_rows(settings: Settings, *, segment_tokens: int, beside: Sequence[int] = ()) -> flops.Work:
    """Returns the work of a pack whose rows are full of segments of one size with captions of the longest.

    Each has clips of so many tokens `beside` it. Raises UserError for segments that no row holds.
    """
    packing = settings.packing
    if not 1 <= segment_tokens <= packing.tokens:
        raise UserError(f"segments of {segment_tokens} tokens: a row holds {packing.tokens}, give 1 to that many")
    whole = segment_tokens + sum(beside)
    count = min(packing.segments, packing.tokens // whole)
    text = max(1, min(settings.text.max_tokens, packing.text_tokens // count))
    segment_BL = np.repeat(np.arange(1, count + 1), whole)[None]
    alone_BL = None
    if beside and settings.context.blind:
        one_L = np.repeat(np.arange(len(beside) + 1), (segment_tokens, *beside))
        alone_BL = np.where(one_L > 0, one_L + np.arange(count)[:, None] * len(beside), 0).reshape(1, -1)
    text_segment_BK = np.repeat(np.arange(1, count + 1), text)[None]
    images = 0 if settings.shown is None else settings.shown.tokens
    image_segment_BM = np.repeat(np.arange(1, count + 1), images)[None]
    row = flops.work_of(segment_BL, text_segment_BK, image_segment_BM, alone_BL=alone_BL)
    return sum((row for _ in range(packing.rows)), flops.NO_WORK)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBatch:
    """A batch that a stage trains on, as shapes.

    Attributes:
      what: In words: which key of the config says how large it is.
      size: Rows, or clips: what is split over devices and micro-batches.
      shapes: Of its arrays, by name, without shardings.
      ways: `(mesh, params)` -> how values of a micro-batch are split over devices; params are shapes with shardings.
      flops: Model FLOPs of a step on it; None where no formula says.
      recomputed: FLOPs of it done again because of rematerialisation, at least.
      title: Added to the name of the program where a stage has several.
      facts: As in `Program`.
    """

    what: str
    size: int
    shapes: BatchShapes
    ways: Callable[[Mesh, Params], activations.Ways]
    flops: float | None
    recomputed: float
    title: str
    facts: dict[str, Any]


def packed_batch(
    settings: Settings,
    *,
    segment_tokens: int,
    accumulate: int,
    widths: tuple[int, int],
    step_flops: Callable[[flops.Work], float],
    recomputed: Callable[[flops.Work], float] = lambda work: 0.0,
    parts: int = 0,
    beside: Sequence[int] = (),
    prompted: bool = False,
) -> StepBatch:
    """Returns a pack whose rows are full of segments of one size; UserError for segments that no row holds.

    `widths` are the model's hidden width of feed-forwards and width of a head, which `activations.of_rows` splits;
    `parts` and `prompted` as of `pack_shapes`, `beside` as of `work_of_rows`.
    """
    packing, work = settings.packing, work_of_rows(settings, segment_tokens=segment_tokens, beside=beside)

    def split(mesh: Mesh, params: Params) -> activations.Ways:
        rows = packing.rows // accumulate
        return activations.of_rows(mesh, params, rows=rows, tokens=packing.tokens, split=frozenset(widths))

    return StepBatch(
        what=f"packing.rows is {packing.rows}",
        size=packing.rows,
        shapes=pack_shapes(settings, packing.rows, parts=parts, prompted=prompted),
        ways=split,
        flops=step_flops(work),
        recomputed=recomputed(work),
        title="",
        facts={
            "rows": packing.rows,
            "tokens of a row": packing.tokens,
            "segments of a row": work.segments // packing.rows,
            "tokens of a segment": segment_tokens,
            **({"tokens beside it": sum(beside)} if beside else {}),
        },
    )


def pack_shapes(
    settings: Settings,
    rows: int,
    place: NamedSharding | None = None,
    *,
    parts: int = 0,
    prompted: bool = False,
) -> BatchShapes:
    """Returns the shapes of a pack of the run, which lies at `place`, with up to `parts` clips beside each.

    `prompted`: a part of its texts is given.
    """
    row = dataclasses.replace(pack_layout(settings), parts=parts, prompted=prompted).row().arrays
    return {n: jax.ShapeDtypeStruct((rows, *v.shape), v.dtype, sharding=place) for n, v in row.items()}


def canvas_shapes(settings: Settings, rows: int, place: NamedSharding) -> CanvasBatch:
    """Returns the shapes of a batch of canvases, none of which turns to a second prompt."""
    tokens, segments = settings.packing.tokens, settings.packing.segments
    pack = pack_shapes(settings, rows, place)

    def shaped(width: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *width), dtype, sharding=place)

    return CanvasBatch(
        pack=pack,
        noise_BLP=pack["tokens_BLP"],
        known_BL=shaped((tokens,), bool),
        strength_BS=shaped((segments,), np.float32),
        guidance_BS=shaped((segments,), np.float32),
        negative=texts_of(pack),
        turned=None,
        share_BL=None,
        row_tokens=jax.ShapeDtypeStruct((), np.int32, sharding=place),
    )


def sampling_program(
    settings: Settings, mesh: Mesh, *, size: str | None = None, seconds: float | None = None
) -> Program:
    """Returns the whole loop of the solver over a batch, its rows full of windows of one kind of video.

    It has the `size`, "HEIGHTxWIDTH" in px, and the `seconds`, by default those of the samples of training. Raises
    UserError where that cannot be asked for.
    """
    config, packing, transformer = solver_config(settings), settings.packing, settings.transformer
    structure, params, axes = abstract_model(functools.partial(build_generator, settings))
    places = sharding.param_shardings(axes, params, mesh)
    shaped = {n: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=places[n]) for n, v in params.items()}
    # A prompt changes nothing here, so it is counted without the files of the run's own tokenizer.
    limits = dataclasses.replace(limits_of(settings), tokenizer=BYTE_TOKENIZER, negative="")
    if limits.shown is not None:  # an image changes nothing here
        limits = dataclasses.replace(limits, shown=None, knows=True)
    job = read_job(Request(prompt=("any",), size=size, seconds=None if seconds is None else str(seconds)), limits)
    windows = limits.windows(job.frames, job.size)
    grid = (windows[0], *limits.grid(limits.first, job.size)[1:])
    if shapes.count(grid) > packing.tokens:
        parts = sharding.ways("batch", mesh)
        longer = longer_rows(RowSize(packing.rows, packing.tokens), shapes.count(grid), parts=parts)
        packing = dataclasses.replace(packing, tokens=longer.tokens, rows=longer.rows)
        settings = dataclasses.replace(settings, packing=packing)
    batch = canvas_shapes(settings, packing.rows, sharding.replicated(mesh))
    work = work_of_rows(settings, segment_tokens=shapes.count(grid))
    once = flops.transformer_flops(
        transformer, text_dim=settings.text_encoder.width, patch_width=settings.patch_width, work=work
    )
    evaluations = solver_evaluations(config)
    return Program(
        name="sampling: the solver's loop",
        lower=lambda: make_solver(structure, config, dtype=compute_dtype(settings.precision)).lower(shaped, batch),
        held={"parameters": shaped, "batch": batch},
        kept=None,
        flops=once * evaluations,
        recomputed=0.0,
        facts={
            "rows": packing.rows,
            "videos": work.segments,
            "frames": job.frames,
            "windows of each": len(windows),
            "grid": "x".join(map(str, grid)),
            "evaluations": evaluations,
        },
        times=len(windows),
    )


def solver_evaluations(config: SolverConfig) -> int:
    """Returns how often the solver evaluates the model for a batch."""
    evaluations = 2 * config.steps - 1 if config.method == "heun" else config.steps
    return evaluations * 2 if config.guidance.scale != 1 else evaluations


def text_program(settings: Settings, mesh: Mesh) -> Program | None:
    """Returns the pass of the frozen text encoder over a batch of the longest texts, as one chip prepares them.

    None where texts are encoded in training, or no shape of the network is known.
    """
    build = settings.text_encoder.network()
    if build is None:
        return None
    structure, params, _ = abstract_model(build)
    place, length = sharding.replicated(mesh), settings.text.max_tokens
    texts = max(1, MOST_TOKENS // length)
    shaped = {n: jax.ShapeDtypeStruct(v.shape, jnp.bfloat16, sharding=place) for n, v in params.items()}
    batch = (
        jax.ShapeDtypeStruct((texts, length), jnp.int32, sharding=place),
        jax.ShapeDtypeStruct((texts,), jnp.int32, sharding=place),
    )
    return Program(
        name=f"encoding {texts} texts of {length} tokens",
        lower=lambda: pass_of(structure).lower(shaped, *batch),
        held={"parameters": shaped, "batch": batch},
        kept=None,
        flops=None,
        recomputed=0.0,
        facts={"texts": texts, "tokens of each": length},
    )


def bytes_on_a_device(tree: Any) -> float:
    """Returns the bytes of one device's parts of shapes with shardings."""
    return float(
        sum(math.prod(one.sharding.shard_shape(one.shape)) * one.dtype.itemsize for one in jax.tree.leaves(tree))
    )
