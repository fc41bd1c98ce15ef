"""Values that a user gives, held against the types that are wanted: what is none of them ends in a sentence."""

import functools
import inspect
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar

from sora_jax.core.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_SCALARS = {*_WORDS, types.NoneType}
# Whole numbers that are the same as a float, and that are about one: what is larger is none to count with.
_SAME_AS_FLOAT, _NEAR_FLOAT = 2**53, int(sys.float_info.max)


def typed(name: str, value: Any, kind: Any, *, nothing: str = "None") -> Any:
    """Returns a value of a kind, such as `int | None` or `tuple[str, ...]`, in Python's own types.

    A scalar of numpy or jax is the number that it holds, a path is its text, and a whole number serves as a number. Of
    a Literal only a text is asked. Raises UserError for another one, which calls None `nothing`.
    """
    plain = tuple(map(_plain, value)) if isinstance(value, tuple | list) else _plain(value)
    if not _is_a(plain, kind):
        large = f" up to {_largest(kind):.2g}" if isinstance(plain, int) and abs(plain) > _largest(kind) else ""
        raise UserError(f"{name} {reprlib.repr(value)} is not {_in_words(kind, nothing)}{large}")
    return plain


def typed_all(values: Mapping[str, Any], kinds: Mapping[str, Any], *, nothing: str = "None") -> dict[str, Any]:
    """Returns values by name, each `typed`; raises UserError for one that has another name than `kinds`, too."""
    if unknown := sorted(values.keys() - kinds.keys()):
        raise UserError(f"{', '.join(map(repr, unknown))} is none of {', '.join(kinds)}")
    return {name: typed(name, value, kinds[name], nothing=nothing) for name, value in values.items()}


def typed_arguments(call: Callable[P, R]) -> Callable[P, R]:
    """Returns a function whose arguments are `typed` by its annotations, where these are of scalars."""
    signature = inspect.signature(call)

    @functools.wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        bound, kinds = signature.bind(*args, **kwargs), typing.get_type_hints(call)
        for name, value in bound.arguments.items():
            if {*_options(kinds.get(name))} <= _SCALARS:
                bound.arguments[name] = typed(name, value, kinds[name])
        return call(*bound.args, **bound.kwargs)

    return checked


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _options(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _largest(kind: Any) -> int:
    return _SAME_AS_FLOAT if float in _options(kind) else _NEAR_FLOAT


def _is_a(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(one, typing.get_args(kind)[0]) for one in value)
    if typing.get_origin(kind) is Literal:
        return isinstance(value, str)
    options = _options(kind)
    if isinstance(value, bool):
        return bool in options
    if isinstance(value, int) and abs(value) > _largest(kind):
        return False
    return isinstance(value, options) or (float in options and isinstance(value, int))


def _in_words(kind: Any, nothing: str) -> str:
    if typing.get_origin(kind) is tuple:
        one = _in_words(typing.get_args(kind)[0], nothing)
        return f"{one} or a list of {one.removeprefix('a ')}s"
    if typing.get_origin(kind) is Literal:
        return "text"
    return " or ".join(_WORDS.get(option, nothing) for option in _options(kind))
