"""A command says that it compiles first, and how long that takes: by the last time, where there was one."""

import json
import logging

import jax
import jax.numpy as jnp
import pytest

from sora_jax.experiment import compile_times
from sora_jax.experiment.compile_times import compiling_told
from sora_jax.experiment.settings import read_settings


@pytest.fixture
def told(toy_config, tmp_path, caplog, monkeypatch):
    """Returns what a piece of work says before it compiles a program of its own; it takes a folder for the cache."""
    caplog.set_level(logging.INFO, logger="absl")
    monkeypatch.setattr(compile_times, "compile_seconds", lambda compiling, cache: compiling[0])
    settings = read_settings(toy_config())

    def work(name="sampling", compiling=(100.0, 10.0), *, cache=tmp_path, settings=settings, programs=1):
        caplog.clear()
        with compiling_told(name, compiling, settings, cache):
            (said,) = caplog.messages
            for number in range(programs):
                jax.jit(lambda x, by=number: jnp.sin(x) * by)(jnp.ones(3))
        return said

    work.settings = settings
    return work


def noted(folder):
    return json.loads((folder / "seconds.json").read_text())


def test_the_first_time_it_is_what_is_expected_and_then_what_it_took(told, tmp_path):
    assert told() == "sampling: first the programs are compiled, about 2 min"
    ((name, took),) = noted(tmp_path).items()
    assert 0 < took < 60
    (tmp_path / "seconds.json").write_text(json.dumps({name: 200.0}))
    assert told() == "sampling: first the programs are compiled, about 3 min"
    assert noted(tmp_path)[name] < 60, "the last time counts"


def test_another_work_and_another_model_have_times_of_their_own(told, toy_config, tmp_path):
    told()
    assert told("prepare", (40.0, 4.0)) == "prepare: first the programs are compiled, about 40 s"
    larger = toy_config()
    larger.transformer.depth = 3
    assert told(settings=read_settings(larger)).endswith("about 2 min")
    assert len(noted(tmp_path)) == 3


def test_where_nothing_was_compiled_nothing_is_noted(told, tmp_path):
    told(programs=0)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_not_there_or_torn_or_read_only_is_no_fault(told, tmp_path, monkeypatch):
    assert told(cache=None).endswith("about 2 min")
    for torn in ("{", "[]", '{"a": "b"}'):
        (tmp_path / "seconds.json").write_text(torn)
        assert told().endswith("about 2 min")
        assert len(noted(tmp_path)) == 1
    monkeypatch.setattr(compile_times.tempfile, "NamedTemporaryFile", _refuse)
    assert told().endswith("about 10 s")


def _refuse(*_: object, **__: object) -> None:
    raise OSError(30, "Read-only file system")


def test_a_work_that_fails_notes_nothing_and_is_heard_no_longer(told, tmp_path):
    def fail() -> None:
        jax.jit(lambda x: jnp.cos(x) * 7)(jnp.ones(2))
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"), compiling_told("sampling", (9.0, 1.0), told.settings, tmp_path):
        fail()
    assert list(tmp_path.iterdir()) == []
