"""Values by their types: which are taken for which, and what is told of the others."""

from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.core.typed import typed, typed_all, typed_arguments


@pytest.mark.parametrize(
    ("value", "kind", "found"),
    [
        (np.int64(3), int, 3),
        (np.array(3), int, 3),
        (jnp.array(3), int | None, 3),
        (np.float32(0.5), float, 0.5),
        (3, float, 3),
        (np.bool_(True), bool, True),
        (Path("a/b"), str | None, "a/b"),
        (np.str_("a"), str, "a"),
        (None, str | None, None),
        ([1, np.int32(2)], tuple[int, ...], (1, 2)),
        ("text", Literal["text"], "text"),
    ],
)
def test_a_value_is_taken_in_pythons_own_type(value, kind, found):
    taken = typed("it", value, kind)
    assert (taken, type(taken)) == (found, type(found))


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (2.0, int, "it 2.0 is not a whole number"),
        (True, int, "it True is not a whole number"),
        (True, float | None, "it True is not a number or None"),
        (1, bool, "it 1 is not true or false"),
        (b"a", str, "it b'a' is not text"),
        (None, int, "it None is not a whole number"),
        (np.arange(2), int, "it array([0, 1]) is not a whole number"),
        ((1, "a"), tuple[int, ...], "it (1, 'a') is not a whole number or a list of whole numbers"),
        (10**400, int, f"it 1{'0' * 17}...{'0' * 19} is not a whole number up to 1.8e+308"),
        (10**30, float, f"it 1{'0' * 30} is not a number up to 9e+15"),
        (3, Literal["text"], "it 3 is not text"),
    ],
)
def test_what_is_none_is_told(value, kind, said):
    with pytest.raises(UserError) as error:
        typed("it", value, kind)
    assert str(error.value) == said


def test_names_are_those_that_there_are():
    assert typed_all({"a": np.int64(1)}, {"a": int, "b": int}) == {"a": 1}
    with pytest.raises(UserError, match="'c' is none of a, b"):
        typed_all({"c": 1}, {"a": int, "b": int})


def test_annotations_of_scalars_hold_for_arguments():
    @typed_arguments
    def call(one: int, many: list[int], *, other: float | None = None) -> tuple[object, ...]:
        return one, many, other

    assert call(np.int64(1), [2.5], other=2) == (1, [2.5], 2)
    with pytest.raises(UserError, match="other '2' is not a number or None"):
        call(1, [], other="2")
