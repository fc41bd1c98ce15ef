"""From a config tree to dataclasses: every mistake is named, all at once."""

import dataclasses
import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from sora_jax.core.config import build, differences, to_json
from sora_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float
    name: Literal["adam", "muon"]

    def __post_init__(self):
        if self.rate < 0:
            raise UserError(f"rate {self.rate} is negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    on: bool
    path: str | None
    mode: Literal["a", "b"] | None
    size: tuple[int, int]
    sides: tuple[tuple[int, int], ...]
    inner: Inner


def good():
    inner = {"rate": 1, "name": "muon"}
    tree = {"steps": 3, "on": True, "path": None, "mode": None, "size": (1, 2), "sides": [[1, 2], [3, 4]]}
    return tree | {"inner": inner}


def problems(**changes):
    tree = good() | changes
    with pytest.raises(UserError) as caught:
        build(Outer, {key: value for key, value in tree.items() if value != "absent"})
    return str(caught.value)


def test_a_tree_becomes_dataclasses_with_tuples_for_lists():
    built = build(Outer, good())
    assert built.inner == Inner(rate=1, name="muon")
    assert built.sides == ((1, 2), (3, 4))
    hash(built)


def test_a_config_dict_with_placeholders_is_a_tree():
    tree = ConfigDict(good() | {"sides": ((1, 2),)})
    tree.path = placeholder(str)
    assert build(Outer, tree).path is None
    tree.path = "x"
    assert build(Outer, tree).path == "x"


def test_what_json_gives_back_builds_the_same():
    assert build(Outer, json.loads(json.dumps(good()))) == build(Outer, good())


def test_an_unknown_key_is_named_with_the_nearest():
    assert problems(stepz=1) == "config.stepz is unknown; did you mean steps?"
    assert problems(inner={"rate": 1, "name": "adam", "naem": 2}).endswith("inner.naem is unknown; did you mean name?")
    assert problems(zzz=1) == "config.zzz is unknown"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "absent"}, "config.steps is missing"),
        ({"steps": 1.5}, "config.steps must be int, not 1.5"),
        ({"steps": True}, "config.steps must be int, not True"),
        ({"steps": None}, "config.steps must be int, not None"),
        ({"on": 1}, "config.on must be bool, not 1"),
        ({"path": 3}, "config.path must be str or None, not 3"),
        ({"mode": "c"}, "config.mode must be one of 'a', 'b' or None, not 'c'"),
        ({"size": (1,)}, "config.size must be tuple[int, int], not (1,)"),
        ({"size": (1, 2, 3)}, "config.size must be tuple[int, int], not (1, 2, 3)"),
        ({"size": 1}, "config.size must be tuple[int, int], not 1"),
        ({"sides": ((1, 2), (3,))}, "config.sides must be tuple[tuple[int, int], ...], not ((1, 2), (3,))"),
        ({"inner": 3}, "config.inner must be a group of keys, not 3"),
        ({"inner": None}, "config.inner must be a group of keys, not None"),
        ({"inner": {"rate": True, "name": "adam"}}, "config.inner.rate must be float, not True"),
        ({"inner": {"rate": float("nan"), "name": "adam"}}, "config.inner.rate must be float, not nan"),
        ({"inner": {"rate": 1.0, "name": "sgd"}}, "config.inner.name must be one of 'adam', 'muon', not 'sgd'"),
        ({"inner": {"rate": -1.0, "name": "adam"}}, "config.inner: rate -1.0 is negative"),
    ],
)
def test_each_mistake_is_told_with_its_path(changes, message):
    assert problems(**changes) == message


def test_all_mistakes_are_told_at_once():
    message = problems(stepz=1, steps="x", on="absent", inner={"rate": -1.0, "name": "adam"})
    for part in ("stepz is unknown", "steps must be int", "on is missing", "inner: rate -1.0 is negative"):
        assert part in message


LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=2) | st.lists(st.integers(0, 2), max_size=2)
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3))
ROOTS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


@given(ROOTS)
def test_a_tree_does_not_differ_from_itself(tree):
    assert differences(tree, json.loads(json.dumps(tree))) == []


def test_differences_name_the_leaf_with_both_values():
    saved = {"a": {"b": 1, "c": [1, 2]}, "d": None, "gone": 5}
    config = {"a": {"b": 2, "c": [1, 2]}, "d": "x", "new": 6}
    assert differences(saved, config) == [
        "a.b: 1 -> 2",
        'd: null -> "x"',
        "gone: 5 -> null",
        "new: null -> 6",
    ]


def test_json_is_the_same_for_equal_configs():
    first, second = ConfigDict({"b": (1, 2), "a": {"x": None}}), ConfigDict({"a": {"x": None}, "b": [1, 2]})
    assert to_json(first) == to_json(second)
    assert json.loads(to_json(first)) == {"a": {"x": None}, "b": [1, 2]}
