"""What a program needs of a machine: compiled for it, measured, and held against what its chips can do.

Bytes, FLOPs and seconds are those of one run of the program, such as a step; bytes are those of one chip.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from sora_jax.core.errors import DoesNotFit
from sora_jax.core.mesh import MESH_AXES
from sora_jax.core.tree import count_parameters
from sora_jax.experiment.programs import Program, bytes_on_a_device
from sora_jax.experiment.settings import Settings
from sora_jax.experiment.stage_settings import CAPTIONER
from sora_jax.planning.collectives import NETWORK, Traffic, bytes_by_axes, traffic
from sora_jax.planning.compilation import Pace, compile_program
from sora_jax.planning.hbm import hbm_bytes, matmul_flops
from sora_jax.planning.hlo import Module, estimated_cycles
from sora_jax.planning.topology import Machine, links

MEMORY_KINDS = ("parameters", "moments", "ema", "batch", "activations", "temporaries")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What was found of one program.

    Attributes:
      name: Of the program.
      machine: Its name.
      mesh: Size of each axis.
      facts: What the program works on.
      parameters: Scalars of the model.
      memory: Bytes by the kinds of MEMORY_KINDS.
      needed: Bytes that live at once, at most; all kinds together.
      host: Bytes of the host's memory that the program uses for a chip.
      limit: Bytes that a chip has for the program; None where nothing is known of it.
      compiled: Whether the compiler made a program; it does not where the memory is too small.
      compile_seconds: Of tracing and compiling.
      flops: Model FLOPs of all chips.
      products: FLOPs of the products of matrices that one chip's program does, kernels written by hand left out; None
        where it was not compiled.
      hbm: Bytes that move between memory and cores; None where it was not compiled.
      cycles: That the compiler expects of a chip, collectives and kernels written by hand left out; None where it says
        nothing.
      sent: What is sent over links and network.
      unknown_loops: How many loops counted once because their length could not be read.
      floor: Seconds that each resource needs at least, the slowest first; empty where nothing is known of the chip.
      mfu: Model FLOPs over what the chips could have done in the time of the slowest; None without a floor.
      times: How often the program runs, one after the other, for what is asked for.
      advice: What to change, where it does not fit.
    """

    name: str
    machine: str
    mesh: dict[str, int]
    facts: dict[str, Any]
    parameters: int
    memory: dict[str, float]
    needed: float
    host: float
    limit: float | None
    compiled: bool
    compile_seconds: float
    flops: float | None
    products: float | None
    hbm: float | None
    cycles: float | None
    sent: list[Traffic]
    unknown_loops: int
    floor: dict[str, float]
    mfu: float | None
    times: int
    advice: list[str]

    @property
    def fits(self) -> bool:
        """Whether a chip holds it, as far as is known."""
        return self.compiled and (self.limit is None or self.needed <= self.limit)


def make_plan(
    program: Program,
    settings: Settings,
    machine: Machine,
    mesh: Mesh,
    *,
    limit: float | None,
    keep_in: str | None = None,
    pace: Pace | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Returns the plan of a program.

    `limit` in bytes takes the place of what the chip has; the compiled program is written to the folder `keep_in`.
    `say` is told what is compiled and how long that is likely to take, by `pace`.
    """
    with jax.set_mesh(mesh):
        kept = 0.0 if program.kept is None else program.kept()
        compiled, needed, available, seconds = compile_program(program, pace or Pace(), say)
    if limit is None:
        limit = available or (None if machine.chip is None else machine.chip.hbm)
    memory, needed = _memory(program, kept=kept, needed=needed)
    sizes: dict[str, int] = dict(zip(MESH_AXES, mesh.devices.shape, strict=True))
    if compiled is not None and keep_in is not None:
        _keep(compiled.as_text(), Path(keep_in), program.name)
    work = _Work() if compiled is None else _work_of(compiled, sizes, slices=machine.slices)
    counted = None if work.products is None else work.products * mesh.size
    flops = counted if program.flops is None else program.flops
    floor = _floor(program, machine, mesh, flops=flops, moved=work.hbm, sent=work.sent)
    peak = 0.0 if machine.chip is None else machine.chip.flops * mesh.size
    plan = Plan(
        name=program.name,
        machine=machine.name,
        mesh=sizes,
        facts=program.facts,
        parameters=count_parameters(program.held["parameters"]),
        memory=memory,
        needed=needed,
        limit=limit,
        compiled=compiled is not None,
        compile_seconds=seconds,
        flops=flops,
        **vars(work),
        floor=floor,
        mfu=flops / peak / max(floor.values()) if floor and flops is not None and peak else None,
        times=program.times,
        advice=[],
    )
    return plan if plan.fits else dataclasses.replace(plan, advice=advise(plan, settings))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
    """What a compiled program does, as `Plan` has it; nothing is known of one that was not compiled."""

    host: float = 0.0
    products: float | None = None
    hbm: float | None = None
    cycles: float | None = None
    sent: list[Traffic] = dataclasses.field(default_factory=list)
    unknown_loops: int = 0


def _work_of(compiled: Any, mesh: dict[str, int], *, slices: int) -> _Work:
    """Returns what the text of a compiled program says of it, on a mesh of these sizes over so many slices."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    module = Module(text)
    sent = traffic(module, mesh | {"data": mesh["data"] // slices}, slices=slices)
    products, moved, cycles = matmul_flops(module), hbm_bytes(module), estimated_cycles(module)
    return _Work(
        host=float(memory.host_temp_size_in_bytes),
        products=products,
        hbm=moved,
        cycles=cycles,
        sent=sent,
        unknown_loops=len(module.unknown_loops),  # those that the functions above met
    )


def _memory(program: Program, *, kept: float, needed: float) -> tuple[dict[str, float], float]:
    """Returns (bytes by `MEMORY_KINDS`, bytes that live at once) of a program that needs `needed` and keeps `kept`."""
    held = {kind: bytes_on_a_device(tree) for kind, tree in program.held.items()}
    memory = {kind: held.get(kind, 0.0) for kind in MEMORY_KINDS} | {"activations": kept}
    needed = max(needed, sum(held.values()))  # what a program does not use is dropped from it, but is held all the same
    return memory | {"temporaries": max(0.0, needed - sum(memory.values()))}, needed


def _keep(text: str, folder: Path, name: str) -> None:
    """Writes a compiled program."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / (re.sub(r"\W+", "_", name) + ".txt")).write_text(text)


def _floor(
    program: Program, machine: Machine, mesh: Mesh, *, flops: float | None, moved: float | None, sent: list[Traffic]
) -> dict[str, float]:
    """Returns the seconds that arithmetic, memory, links by axis and network need at least, the slowest first."""
    chip = machine.chip
    if chip is None or flops is None or moved is None:
        return {}
    seconds = {
        "arithmetic": (flops + program.recomputed) / mesh.size / chip.flops,
        "memory": moved / chip.hbm_bandwidth,
    }
    one_slice = mesh.devices[: mesh.devices.shape[0] // machine.slices]
    for axes, amount in bytes_by_axes(sent).items():
        if axes == (NETWORK,):
            seconds["network"] = amount / chip.network_bandwidth
        else:
            places = [MESH_AXES.index(axis) for axis in axes]
            seconds[f"links of {' x '.join(axes)}"] = amount / (links(one_slice, places, chip) * chip.link_bandwidth)
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def advise(plan: Plan, settings: Settings) -> list[str]:
    """Returns what would make a plan fit, with numbers, what helps most first."""
    if plan.limit is None:
        return []
    memory, mesh, facts = plan.memory, plan.mesh, plan.facts
    state = memory["parameters"] + memory["moments"] + memory["ema"]
    rest = plan.needed - state
    parts, tokens = facts.get("micro-batches"), facts.get("tokens of a row")
    found: list[tuple[float, str]] = []
    if parts is not None:
        found.append(
            (state / 2, f"mesh.fsdp {mesh['fsdp']} -> {2 * mesh['fsdp']}: {bytes_in_words(state / 2)} less of weights")
        )
        batch = facts.get("rows") or facts["clips"]
        if batch // parts >= 2 * mesh["data"] * mesh["fsdp"]:
            found.append((rest / 2, f"accumulate {parts} -> {2 * parts}: about {bytes_in_words(rest / 2)} less"))
    if parts is not None and tokens is not None:
        model, remat, inputs = _blocks(plan, settings)
        if remat not in ("full", "offload"):
            saved = max(0.0, memory["activations"] - inputs)
            found.append(
                (saved, f"{model}.remat 'full': activations {bytes_in_words(inputs)}, {bytes_in_words(saved)} less")
            )
        if remat != "offload":
            saved = memory["activations"]
            found.append(
                (saved, f"{model}.remat 'offload': {bytes_in_words(saved)} less, {bytes_in_words(inputs)} on the host")
            )
        shorter = int(tokens * (plan.limit - state) / rest) // 1024 * 1024 if rest else 0
        if 0 < shorter < tokens:
            found.append((plan.needed - plan.limit, f"packing.tokens {tokens} -> about {shorter}"))
        length = mesh["sequence"]
        found.append((rest / 2, f"mesh.sequence {length} -> {2 * length}: about {bytes_in_words(rest / 2)} less"))
    found.append((0.0, f"chips of {bytes_in_words(plan.needed)} or more"))
    return [text for _, text in sorted(found, key=lambda item: -item[0])]


def _blocks(plan: Plan, settings: Settings) -> tuple[str, str, float]:
    """Returns which part of the config has the blocks, their `remat`, and the bytes of their inputs on one chip."""
    facts, bytes_of_number = plan.facts, 2 if settings.precision == "bfloat16" else 4
    tokens, packing = facts["tokens of a row"], settings.packing
    stage = settings.stages.get(plan.name.partition(":")[0])
    if stage is not None and stage.trains == CAPTIONER:
        part, captioner = "captioner", settings.captioner
        inputs = tokens * captioner.depth + packing.text_tokens * (captioner.unimodal + captioner.multimodal)
    else:
        part, inputs = "transformer", tokens * settings.transformer.depth
    config = getattr(settings, part)
    chips = plan.mesh["data"] * plan.mesh["fsdp"] * plan.mesh["sequence"]
    rows = facts["rows"] / facts["micro-batches"]
    return part, config.remat, rows * inputs * config.width * bytes_of_number / chips


def as_json(plan: Plan) -> dict[str, Any]:
    """Returns the plan as JSON has it."""
    sent = [{**dataclasses.asdict(one), "axes": list(one.axes)} for one in plan.sent]
    return {**dataclasses.asdict(plan), "sent": sent, "fits": plan.fits}


def lines(plan: Plan) -> list[str]:
    """Returns the plan as a page of text."""
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    facts = ", ".join(f"{name} {value}" for name, value in plan.facts.items())
    compiled = f"compiled in {plan.compile_seconds:.0f} s" if plan.compiled else "not compiled: too large"
    text = [
        plan.name,
        f"  machine: {plan.machine}, mesh {mesh}",
        f"  works on: {facts}",
        f"  parameters: {plan.parameters:,}; {compiled}",
        "  memory of a chip: " + ", ".join(f"{kind} {bytes_in_words(plan.memory[kind])}" for kind in MEMORY_KINDS),
    ]
    share = "" if plan.limit is None else f" of {bytes_in_words(plan.limit)} ({plan.needed / plan.limit:.0%})"
    host = f"; of its host {bytes_in_words(plan.host)}" if plan.host else ""
    text.append(f"  in all: {bytes_in_words(plan.needed)}{share}{host}")
    if plan.flops is not None:
        done = "" if plan.products is None else f"; products of matrices in a chip's program {plan.products:.3g}"
        text.append(f"  FLOPs: of the model {plan.flops:.4g}{done}")
    if plan.hbm is not None:
        text.append(f"  a chip moves to and from its memory: {bytes_in_words(plan.hbm)}")
    if plan.cycles is not None:
        text.append(f"  cycles that the compiler expects, kernels written by hand left out: {plan.cycles:.4g}")
    for one in plan.sent:
        place = "from other slices" if one.axes == (NETWORK,) else f"over {' x '.join(one.axes)}"
        text.append(f"  a chip receives {place}: {bytes_in_words(one.bytes)} in {one.times} x {one.kind}")
    if plan.unknown_loops:
        text.append(f"  {plan.unknown_loops} loops of unknown length are counted once")
    if plan.floor:
        floor = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in plan.floor.items())
        mfu = "" if plan.mfu is None else f"; MFU at most {plan.mfu:.0%}"
        text.append(f"  floor of the time: {floor}{mfu}: bound by {next(iter(plan.floor))}")
        if plan.times > 1:
            text.append(
                f"  {plan.times} times, one after the other: {plan.times * max(plan.floor.values()):.3g} s at least"
            )
    return [*text, *verdict(plan)]


def verdict(plan: Plan) -> list[str]:
    """Returns whether it fits, and otherwise what to change."""
    if plan.fits:
        return ["  fits" if plan.limit is not None else "  fits as far as is known: of this device no limit is"]
    assert plan.limit is not None, plan
    needed, limit = bytes_in_words(plan.needed), bytes_in_words(plan.limit)
    said = f"  does not fit: needs {needed} of {limit}; what would help, most first:"
    return [said, *(f"    {one}" for one in plan.advice)]


def check_fits(made: Iterable[Plan]) -> None:
    """Raises DoesNotFit that names all plans that do not fit."""
    large = [plan for plan in made if not plan.fits]
    if large:
        raise DoesNotFit("; ".join(f"{plan.name} needs {bytes_in_words(plan.needed)} of a chip" for plan in large))


def bytes_in_words(count: float) -> str:
    """Returns bytes in words."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.1 * size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
