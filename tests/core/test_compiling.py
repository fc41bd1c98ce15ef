"""What the compiler is asked for, and where what it made is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core import compiling
from sora_jax.core.compiling import holds_programs, run_often, run_once, use_compilation_cache


def test_a_program_that_runs_once_gives_the_same():
    def normal(key):
        return jnp.tanh(jax.random.normal(key, (64, 3)))

    assert run_once(), "there is something to ask for on CPU"
    hasty = jax.jit(normal, compiler_options=run_once())(jax.random.key(1))
    np.testing.assert_allclose(hasty, jax.jit(normal)(jax.random.key(1)), rtol=1e-5)


def test_a_program_that_runs_often_gives_the_same_and_convolves_on_all_cores():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    # Of fewer channels XLA leaves it to Eigen by itself.
    x, kernel = (
        jax.random.normal(jax.random.key(1), (4, 6, 6, 32)),
        jax.random.normal(jax.random.key(2), (3, 3, 32, 32)),
    )
    usual, ours = (
        jax.jit(convolve, compiler_options=options).lower(x, kernel).compile() for options in ({}, run_often())
    )
    np.testing.assert_allclose(ours(x, kernel), usual(x, kernel), rtol=1e-4, atol=1e-4)
    assert "__ynn" in usual.as_text(), "else there is nothing to ask for any more"
    assert "__ynn" not in ours.as_text(), "that library of kernels computes a convolution on one core"


def test_what_the_user_says_of_the_compiler_counts(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    assert run_often()["xla_backend_optimization_level"] == 1
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=3")
    assert run_often().keys() == {"xla_cpu_experimental_ynn_fusion_type"}


def test_elsewhere_nothing_is_asked_for(monkeypatch):
    monkeypatch.setattr(compiling, "current_platform", lambda: "tpu")
    assert run_once() == run_often() == {}


@pytest.fixture
def updates(monkeypatch):
    """What jax is told, by name, instead of being told."""
    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    return found


def test_programs_are_kept_in_the_users_cache_or_where_the_user_says(tmp_path, monkeypatch, updates, caplog):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert use_compilation_cache() == tmp_path / "sora_jax" / "xla"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert use_compilation_cache() == tmp_path / "home" / ".cache" / "sora_jax" / "xla"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert use_compilation_cache() == tmp_path / "mine"
    assert updates == {"jax_compilation_cache_dir": str(tmp_path / "mine")}
    assert caplog.messages == []


def test_without_a_home_there_is_no_cache_and_the_run_goes_on(monkeypatch, updates, caplog):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compiling.Path, "home", no_home)
    assert use_compilation_cache() is None
    assert updates == {"jax_compilation_cache_dir": None}
    (said,) = caplog.messages
    assert "Could not determine home directory" in said
    assert "each start compiles them again; name one in JAX_COMPILATION_CACHE_DIR" in said


def test_where_no_folder_can_be_made_there_is_no_cache_and_the_run_goes_on(tmp_path, monkeypatch, updates, caplog):
    (tmp_path / "file").touch()
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        monkeypatch.setenv(name, str(tmp_path / "file"))
        assert use_compilation_cache() is None
    assert updates == {"jax_compilation_cache_dir": None}
    assert len(caplog.messages) == 2


def test_the_cache_of_another_user_is_neither_read_nor_a_reason_to_stop(tmp_path, monkeypatch, updates, caplog):
    """As in a container whose image was made by root, or where users have other numbers than outside."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine = compiling.os.getuid()
    monkeypatch.setattr(compiling.os, "getuid", lambda: mine + 1)
    assert use_compilation_cache() is None
    assert updates == {"jax_compilation_cache_dir": None}
    (said,) = caplog.messages
    assert f"xla is of user {mine} and this is {mine + 1}): each start compiles them again" in said


def test_a_folder_that_cannot_be_written_to_is_only_read(tmp_path, monkeypatch, updates, caplog):
    def read_only(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiling.tempfile, "TemporaryFile", read_only)
    assert use_compilation_cache() == tmp_path
    assert updates["jax_compilation_cache_dir"] == str(tmp_path)
    assert updates["jax_persistent_cache_min_compile_time_secs"] > 1e6
    (said,) = caplog.messages
    assert said.startswith(
        f"compiled programs are read from {tmp_path} but cannot be kept there (Read-only file system)"
    )


def test_a_cache_with_many_programs_is_known(tmp_path):
    assert not holds_programs(None)
    assert not holds_programs(tmp_path)
    for number in range(20):
        (tmp_path / f"jit_{number}-cache").touch()
    assert holds_programs(tmp_path)
