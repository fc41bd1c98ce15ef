"""From the `ml_collections` tree that a user edits to the frozen dataclasses that the code reads.

Every key lives in `configs/base.py` with its comment; nothing here supplies a default. Each consumer declares its
sub-tree as a frozen keyword-only dataclass and gets it through `build`, which says what is misspelt, missing or of the
wrong type, all at once. A key that may be None may also be missing: so configs of earlier versions, in workdirs, open.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from sora_jax.core.errors import UserError

T = TypeVar("T")


def build(cls: type[T], tree: Any, path: str = "config") -> T:
    """Returns the dataclass `cls` filled from `tree`; nested dataclass fields are built from nested trees.

    `tree` is a ConfigDict or a mapping. Lists become tuples.

    Raises UserError listing every unknown, missing, wrongly typed or refused key by its full path.
    """
    problems: list[str] = []
    result = _build(cls, tree, path, problems)
    if problems:
        raise UserError("; ".join(problems))
    return result


def _build(cls: Any, tree: Any, path: str, problems: list[str]) -> Any:
    """Returns the dataclass, or None after adding to `problems`."""
    if not isinstance(tree, ConfigDict | Mapping):
        problems.append(f"{path} must be a group of keys, not {tree!r}")
        return None
    before = len(problems)
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in tree:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            problems.append(f"{path}.{key} is unknown" + (f"; did you mean {near[0]}?" if near else ""))
    values = {}
    for name in names:
        if name not in tree and _matches(None, hints[name]):
            values[name] = None  # what the config of an earlier version could not say is off
            continue
        if name not in tree:
            problems.append(f"{path}.{name} is missing")
            continue
        value, hint = tree[name], _group(hints[name], tree[name])
        if dataclasses.is_dataclass(hint):
            values[name] = _build(hint, value, f"{path}.{name}", problems)
        elif typing.get_origin(hint) is dict and isinstance(value, ConfigDict | Mapping):
            values[name] = _build_group(typing.get_args(hint)[1], value, f"{path}.{name}", problems)
        elif _matches(value, hint):
            values[name] = _freeze(value)
        else:
            problems.append(f"{path}.{name} must be {_words(hint)}, not {value!r}")
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except UserError as error:
        problems.append(f"{path}: {error}")


def _group(hint: Any, value: Any) -> Any:
    """Returns the class of a group that may also be None, where it is not; otherwise the hint."""
    options = [one for one in typing.get_args(hint) if dataclasses.is_dataclass(one) or typing.get_origin(one) is dict]
    return options[0] if options and type(None) in typing.get_args(hint) and value is not None else hint


def _build_group(hint: Any, tree: ConfigDict | Mapping[str, Any], path: str, problems: list[str]) -> dict[str, Any]:
    """Returns what lies under names of the user's own choice, all of one kind."""
    if dataclasses.is_dataclass(hint):
        return {name: _build(hint, tree[name], f"{path}.{name}", problems) for name in tree}
    problems += [
        f"{path}.{name} must be {_words(hint)}, not {tree[name]!r}" for name in tree if not _matches(tree[name], hint)
    ]
    return {name: tree[name] for name in tree}


def _matches(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_matches(value, option) for option in typing.get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_matches(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_matches, value, args))
    if origin is typing.Literal:
        return value in args
    if origin is dict:
        return isinstance(value, ConfigDict | Mapping)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list | tuple) else value


def _words(hint: Any) -> str:
    """Returns what a value must be, in words."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(map(_words, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) else str(hint)


def to_json(config: ConfigDict) -> str:
    """Returns the config as JSON text, keys sorted, tuples as lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def differences(saved: Mapping[str, Any], config: Mapping[str, Any], path: str = "") -> list[str]:
    """Returns "key: old -> new" for every leaf in which two JSON trees differ."""
    result = []
    for key in sorted({*saved, *config}):
        name = f"{path}{key}"
        old, new = saved.get(key), config.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            result += differences(old, new, f"{name}.")
        elif old != new:
            result.append(f"{name}: {json.dumps(old)} -> {json.dumps(new)}")
    return result


def at_least_one(config: Any, *names: str) -> None:
    """Raises UserError for a field under 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}: it must be at least 1")
