"""Seconds by kernel of a profile."""

import jax
import jax.numpy as jnp
import pytest

from sora_jax.benchmarks import kernels
from sora_jax.benchmarks.kernels import KernelRun
from sora_jax.core.errors import UserError


def test_kernels_of_a_profile_are_what_ran(tmp_path):
    x = jnp.ones((256, 256))
    step = jax.jit(lambda x: jnp.sin(x @ x))
    step(x).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        step(x).block_until_ready()
    found = kernels.kernels_of(tmp_path)
    assert any("dot" in kernel.name or "fusion" in kernel.name for kernel in found)
    assert all(kernel.end >= kernel.start for kernel in found)
    assert "ms of work" in kernels.kernel_table(found, rows=3)


def test_the_table_adds_up_by_name_and_counts_when_nothing_ran():
    ran = [
        KernelRun(name="product", start=0.0, end=4e6),
        KernelRun(name="copy", start=1e6, end=2e6),
        KernelRun(name="product", start=7e6, end=9e6),
    ]
    assert kernels.idle(ran) == 3e6
    first, *rows = kernels.kernel_table(ran, rows=1).splitlines()
    assert first == "3 kernels in 9.0 ms, 7.0 ms of work, 3.0 ms in which none ran"
    assert [row.split() for row in rows] == [["6.00", "ms", "2", "product"]]
    assert kernels.kernel_table([], rows=1) == "no kernel ran"


def test_a_folder_without_a_profile_ends_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"holds no profile \(\*.xplane.pb\): have one written by log.profile_steps"):
        kernels.kernels_of(tmp_path)
