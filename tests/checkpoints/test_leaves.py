import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.checkpoints import leaves
from sora_jax.core.errors import NumericsError

TREE = {"a": {"b": jnp.zeros((2, 3)), "c": (jnp.int32(1), jnp.zeros(4, jnp.bfloat16))}}


def test_names_are_those_on_the_way():
    assert list(leaves.by_name(TREE)) == ["a/b", "a/c/0", "a/c/1"]
    assert leaves.nested(TREE)["a"]["c"]["1"] is TREE["a"]["c"][1]
    assert leaves.form(TREE["a"]["c"][1]) == "bfloat16[4]"


def test_differences_are_named():
    wanted = leaves.by_name(TREE)
    saved = {"a/b": jax.ShapeDtypeStruct((2, 4), jnp.float32), "a/c/0": wanted["a/c/0"], "d": wanted["a/b"]}
    lines = [
        "a/b is float32[2, 4] in the checkpoint and float32[2, 3] in this config",
        "a/c/1 is not in the checkpoint",
    ]
    assert leaves.leaf_differences(saved, wanted, whole=False) == lines
    assert leaves.leaf_differences(saved, wanted, whole=True) == [*lines, "d is not in this config's state"]
    assert leaves.first_lines([str(n) for n in range(10)]) == "0; 1; 2; 3; 4; 5; 6; 7; and 2 more"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_leaves_that_are_not_finite_are_named_and_nothing_is_donated(bad):
    leaves.refuse_non_finite(TREE, what="it")
    broken = {"a": TREE["a"], "x": jnp.zeros((8, 8)).at[7, 7].set(bad), "y": jnp.full(3, bad, jnp.bfloat16)}
    with pytest.raises(NumericsError, match="it is not finite, so it is not saved: x; y; the last"):
        leaves.refuse_non_finite(broken, what="it")
    assert float(broken["x"][0, 0]) == 0.0
    leaves.refuse_non_finite({"n": jnp.int32(3)}, what="it")
