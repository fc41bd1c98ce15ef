"""The house stands: who may import whom, and how long a room may be."""

import ast
import collections
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "sora_jax"
FLOORS = {
    "core": 0,
    "nn": 1,
    "video": 1,
    "diffusion": 2,
    "checkpoints": 2,
    "data": 2,
    "models": 3,
    "objectives": 4,
    "train": 4,
    "preparation": 4,
    "generate": 4,
    "evaluation": 5,
    "reports": 5,
    "experiment": 6,
    "planning": 7,
    "benchmarks": 8,
}
COMMANDS = 8
LONGEST_FILE, LONGEST_FUNCTION = 360, 50
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc"}
# Spelt in two parts, or this file would be the first to break the rule.
SUPPRESSIONS = ("no" + "qa", "type: " + "ignore", "pyright: " + "ignore", "fmt: " + "off", "fmt: " + "skip")
# The data plane makes no device arrays; named randomness is its one link to a module that knows jax.
NOT_FOR_DATA = ("jax", "flax", "optax", f"{PACKAGE}.nn")
# References of the parity tests, and frameworks that nothing here needs.
NEVER = ("torch", "diffusers", "transformers", "tensorflow")


# Public names that more than one module defines, with the same meaning in each.
ONE_MEANING = {
    "main": "of a command",
    "make_objective": "what a kind of stage minimises",
    "figures_of": "what a benchmark measures",
    "takes": "whether a kernel can do with these shapes",
    "Blocks": "of a kernel",
    "shapes": "of the weights of a network that measures",
    "FEATURES": "how many numbers such a network makes of a clip",
    "MARKER": "a tensor that no other network has",
    "kill_in_save": "a drill, and the disturbance that it applies",
    "nan_batch": "so",
    "wrong_element": "so",
}


def room(module: str) -> str:
    """Returns "data" of "sora_jax.data.clips"; "" of a command such as "sora_jax.main", and of the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or parts[-1] in FLOORS else ""


def floor(module: str) -> int:
    return FLOORS[room(module)] if room(module) else COMMANDS


def imports(tree: ast.AST, module: str) -> Iterator[str]:
    """Yields the full name of each import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            # `from sora_jax.core import rng` imports the module rng, `from sora_jax.core.rng import key` a function.
            yield from (f"{source}.{name.name}" for name in node.names)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def faults(module: str, source: str) -> list[str]:
    """Returns what is wrong with one module of the package, in words."""
    found = []
    tree = ast.parse(source)
    for name in imports(tree, module):
        if within(name, (PACKAGE,)) and room(name) != room(module) and floor(name) >= floor(module):
            found.append(f"{module}, floor {floor(module)}, imports {name}, floor {floor(name)}")
        if room(module) == "data" and within(name, NOT_FOR_DATA):
            found.append(f"{module} imports {name}: data is numpy")
        if within(name, NEVER):
            found.append(f"{module} imports {name}: a reference of tests")
    if FORBIDDEN_NAMES & set(module.split(".")):
        found.append(f"{module} says nothing by its name")
    lines = source.count("\n")
    if lines > LONGEST_FILE:
        found.append(f"{module} has {lines} lines, over {LONGEST_FILE}")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                found.append(f"{module}.{node.name} has {length} lines, over {LONGEST_FUNCTION}")
    found += [f"{module} holds {mark!r}" for mark in SUPPRESSIONS if mark in source]
    return found


def public_names(source: str) -> set[str]:
    """Returns the names that a module defines for others: functions, classes, constants, type aliases."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not is_type_variable(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def is_type_variable(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "TypeVar"


def shared(sources: dict[str, str]) -> dict[str, list[str]]:
    """Returns the names that several of the modules define, and which do."""
    owners = collections.defaultdict(list)
    for module, source in sources.items():
        for name in public_names(source):
            owners[name].append(module)
    return {name: modules for name, modules in owners.items() if len(modules) > 1}


def modules() -> dict[str, Path]:
    paths = [path.relative_to(ROOT) for path in (ROOT / PACKAGE).rglob("*.py")]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): ROOT / path for path in paths}


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_keeps_the_rules(module):
    assert faults(module, modules()[module].read_text()) == []


def test_a_public_name_has_one_meaning():
    found = shared({module: path.read_text() for module, path in modules().items()})
    assert {name: owners for name, owners in found.items() if name not in ONE_MEANING} == {}, "rename all but one"
    assert found.keys() >= ONE_MEANING.keys(), "no exception outlives what it is for"


def test_a_name_of_several_modules_is_found():
    one = "from x import Batch\nT = TypeVar('T')\nSize: int = 3\n_KEPT = 1\ndef judge(): ...\n"
    other = "T = TypeVar('T')\n_KEPT = 2\nclass judge: ...\nSize, rest = 1, 2\nBatch = dict\n"
    assert shared({"a": one, "b": other}) == {"judge": ["a", "b"], "Size": ["a", "b"]}


def test_every_folder_is_on_a_floor():
    folders = {path.name for path in (ROOT / PACKAGE).iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {"core", "data", "models", "train"} <= folders <= FLOORS.keys()


def test_tests_and_configs_suppress_nothing_either():
    paths = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "configs").rglob("*.py")]
    assert len(paths) > 30
    assert [path for path in paths for mark in SUPPRESSIONS if mark in path.read_text()] == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("sora_jax.core.rng", "from sora_jax.train import loop", "floor 0, imports sora_jax.train.loop, floor 4"),
        ("sora_jax.core.rng", "import sora_jax.nn", "floor 0, imports sora_jax.nn, floor 1"),
        ("sora_jax.core.rng", "def f():\n    import sora_jax.data.clips as c", "imports sora_jax.data.clips"),
        ("sora_jax.core.rng", "from ..nn.linear import Linear", "imports sora_jax.nn.linear.Linear"),
        ("sora_jax.models.codec", "from sora_jax.train import loop", "floor 3, imports sora_jax.train.loop"),
        ("sora_jax.experiment.run", "from sora_jax import main", "floor 6, imports sora_jax.main, floor 8"),
        ("sora_jax.train.loop", "from sora_jax.generate import canvas", "floor 4, imports sora_jax.generate.canvas"),
        ("sora_jax.main", "from sora_jax.benchmarks import turns", "floor 8, imports sora_jax.benchmarks.turns"),
        ("sora_jax.data.clips", "from sora_jax.models.codec import Codec", "floor 2, imports sora_jax.models"),
        ("sora_jax.data.clips", "import jax.numpy as jnp", "data is numpy"),
        ("sora_jax.models.x", "import torch", "a reference of tests"),
        ("sora_jax.core.utils", "", "says nothing by its name"),
        ("sora_jax.core.x", "\n" * 361, "has 361 lines"),
        ("sora_jax.core.x", "def f():\n" + "    x = 1\n" * 50, "sora_jax.core.x.f has 51 lines"),
        ("sora_jax.core.x", f"import os  # {SUPPRESSIONS[0]}", "holds"),
        ("sora_jax.core.x", f"x = 1  # {SUPPRESSIONS[1]}", "holds"),
    ],
)
def test_a_broken_rule_is_found(module, source, fault):
    found = faults(module, source)
    assert len(found) == 1, found
    assert fault in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sora_jax.data.clips", "from sora_jax.core import rng\nimport numpy\nfrom sora_jax.data.x import y"),
        ("sora_jax.experiment.run", "from sora_jax.data.clips import Clip\nfrom sora_jax.generate import canvas"),
        ("sora_jax.train.loop", "from sora_jax.train.step import make_step\nfrom sora_jax.checkpoints import leaves"),
        ("sora_jax.main", "from sora_jax.experiment.run import run\nimport jaxlib"),
        ("sora_jax.core.x", "def f():\n" + "    x = 1\n" * 49),
    ],
)
def test_a_kept_rule_is_no_fault(module, source):
    assert faults(module, source) == []
