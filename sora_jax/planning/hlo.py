"""Reads a compiled program as XLA prints it: its computations, how often each runs, the sizes of what it handles.

Text in, numbers out: nothing here imports jax. Verified on what XLA prints for CPU and TPU with jax 0.10.2.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Bits of an element by the name of its type; the exotic ones do not occur in our programs.
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}


def _nested(levels: int) -> str:
    """Returns a pattern of text whose parentheses match, at most so deep."""
    pattern = r"[^()]*"
    for _ in range(levels):
        pattern = rf"[^()]*(?:\({pattern}\)[^()]*)*"
    return pattern


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_SHAPE = rf"\({_nested(4)}\)|[^\s(]+(?:\([^()]*\)[^\s(]*)*"
_INSTRUCTION = re.compile(rf"^\s+(ROOT )?%?([\w.\-]+) = ({_SHAPE}) ([a-z][\w\-]*)\(({_nested(4)})\)(.*)$")
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"?known_trip_count"?:\{"?n"?:"?(\d+)')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SAME = ("copy", "bitcast", "convert", "copy-done")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: Of its result.
      shape: Of its result, as printed.
      op: What it does, such as "all-gather".
      operands: Names of what it works on, in order.
      literal: What stands between the parentheses; the value of a constant, the number of a parameter.
      attributes: The rest of the line.
      root: Whether its result is that of the computation.
    """

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    root: bool

    def called(self, attribute: str) -> str | None:
        """Returns the computation that an attribute such as `body` or `calls` names, if it is there."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visit:
    """A computation as it is reached from the entry.

    Attributes:
      name: Of the computation.
      times: How often it runs in one run of the program.
      within: The computation whose fusion it is the inside of; None where it is no fusion's.
    """

    name: str
    times: int
    within: str | None


class Module:
    """A compiled program: `computations` by name, each a dict of its instructions by name, in order."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line[:1] not in (" ", "}", ""):
                head = _COMPUTATION.match(line)
                if head:
                    current = self.computations.setdefault(head[2], {})
                    self.entry = head[2] if head[1] else self.entry
            elif " = " in line and (found := _INSTRUCTION.match(line)):
                current[found[2]] = Instruction(
                    name=found[2],
                    shape=found[3],
                    op=found[4],
                    operands=tuple(_NAME.findall(found[5])),
                    literal=found[5],
                    attributes=found[6],
                    root=bool(found[1]),
                )
        if not self.entry:
            raise ValueError("this is no compiled program: it has no ENTRY")
        self.unknown_loops: set[str] = set()

    def root(self, computation: str) -> Instruction:
        """Returns the instruction whose result is that of the computation."""
        return next(one for one in self.computations[computation].values() if one.root)

    @functools.cached_property
    def visits(self) -> list[Visit]:
        """Every computation that runs, once for each way in which it is reached.

        A loop whose length cannot be read counts once and is put in `unknown_loops`. Of a condition every branch
        counts.
        """
        return list(self._visits(self.entry, 1, None))

    def _visits(self, name: str, times: int, within: str | None) -> Iterator[Visit]:
        yield Visit(name=name, times=times, within=within)
        for one in self.computations[name].values():
            if one.op == "while":
                body = one.called("body")
                trips = self.trip_count(name, one)
                if trips is None:
                    self.unknown_loops.add(one.name)
                assert body is not None, one
                yield from self._visits(body, times * (1 if trips is None else trips), within)
            elif one.op == "fusion":
                inside = one.called("calls")
                assert inside is not None, one
                yield from self._visits(inside, times, within or name)
            elif one.op in ("call", "async-start"):
                inside = one.called("to_apply") or one.called("calls")
                if inside in self.computations:
                    yield from self._visits(inside, times, within)
            elif one.op == "conditional":
                for branch in self._branches(one):
                    yield from self._visits(branch, times, within)

    def _branches(self, one: Instruction) -> list[str]:
        many = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
        if many:
            return _NAME.findall(many[1])
        return [name for key in ("true_computation", "false_computation") if (name := one.called(key))]

    def trip_count(self, computation: str, loop: Instruction) -> int | None:
        """Returns how often the body of a `while` in `computation` runs; None where that cannot be read.

        XLA for CPU says so. XLA for TPU does not: the counter is then found in the condition, its start where the loop
        is entered, its step in the body.
        """
        said = _TRIPS.search(loop.attributes)
        if said:
            return int(said[1])
        condition, body = loop.called("condition"), loop.called("body")
        assert condition is not None, loop
        assert body is not None, loop
        inside = self.computations[condition]
        test = self.root(condition)
        if test.op != "compare" or "direction=LT" not in test.attributes:
            return None
        counter = _resolve(inside, test.operands[0])
        bound = _constant(inside, test.operands[1])
        number = re.search(r"index=(\d+)", counter.attributes)
        if counter.op != "get-tuple-element" or bound is None or number is None:
            return None
        index = int(number[1])
        entered = self.computations[computation]
        start = _entry_of(entered, loop.operands[0], index)
        first = None if start is None else _constant(entered, start)
        step = self._step(body, index)
        if first is None or step is None or step < 1:
            return None
        return max(0, math.ceil((bound - first) / step))

    def _step(self, body: str, index: int) -> int | None:
        """Returns what a loop adds to its carried value `index` each time."""
        inside, result = self.computations[body], self.root(body)
        if result.op != "tuple":
            return None
        update = _resolve(inside, result.operands[index])
        if update.op != "add":
            return None
        added = [value for name in update.operands if (value := _constant(inside, name)) is not None]
        return added[0] if len(added) == 1 else None


def estimated_cycles(module: Module) -> float | None:
    """Returns the cycles that the compiler expects one run of the program to take; None where it says nothing.

    XLA for TPU says so of its own operations. Collectives and kernels written by hand are not among them.
    """
    total, said = 0, False
    for visit in module.visits:
        if visit.within is None:
            for one in module.computations[visit.name].values():
                found = _CYCLES.search(one.attributes)
                said = said or found is not None
                total += visit.times * int(found[1]) if found else 0
    return float(total) if said else None


def _resolve(inside: dict[str, Instruction], name: str) -> Instruction:
    """Returns where a value comes from, past what leaves it as it is."""
    one = inside[name]
    while one.op in _SAME and one.operands and one.operands[0] in inside:
        one = inside[one.operands[0]]
    return one


def _constant(inside: dict[str, Instruction], name: str) -> int | None:
    one = _resolve(inside, name)
    literal = one.literal.strip()
    return int(literal) if one.op == "constant" and re.fullmatch(r"-?\d+", literal) else None


def _entry_of(inside: dict[str, Instruction], name: str, index: int) -> str | None:
    one = _resolve(inside, name)
    return one.operands[index] if one.op == "tuple" else None


def size_of(shape: str, *, in_hbm: bool = False) -> int:
    """Returns the bytes of a printed shape, of a tuple those of all its parts; padding is not counted.

    With `in_hbm` only of what lies in the device's main memory: XLA for TPU marks the rest in the layout, S(1).
    """
    total = 0
    for kind, dimensions, layout in _ARRAY.findall(shape):
        if kind in ("token", "opaque") or (in_hbm and re.search(r"S\([1-9]\d*\)", layout)):
            continue
        bits = _BITS.get(kind) or int(re.sub(r"\D", " ", kind).split()[0])
        count = math.prod(int(size.lstrip("<=")) for size in dimensions.split(",") if size)
        total += math.ceil(count * bits / 8)
    return total
