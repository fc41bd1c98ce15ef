"""Programs compiled ahead: calls find them, and nobody waits for what nobody compiles."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core import ahead as ahead_module
from sora_jax.core.ahead import Ahead
from sora_jax.core.errors import BUSY
from sora_jax.core.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1), jax.devices()[:1])
SHAPE = jax.ShapeDtypeStruct((3, 5), jnp.float32)


class Lowered:
    """What is lowered, whose compilation takes until it `may_end`, and may fail."""

    def __init__(self, error=None):
        self.error, self.began, self.may_end = error, threading.Event(), threading.Event()

    def __call__(self):
        return self

    def compile(self):
        self.began.set()
        assert self.may_end.wait(30)
        if self.error is not None:
            raise self.error


def test_a_call_finds_what_was_compiled_ahead(compiled):
    def twice_and_one(x):
        return 2 * x + 1

    program, began = jax.jit(twice_and_one), threading.Event()

    def lower():
        began.set()
        return program.lower(SHAPE)

    with Ahead() as ahead:
        ahead.add("twice", lower, MESH)
        assert began.wait(30)
    assert len(compiled) == 1
    x = jnp.ones((3, 5))
    compiled.clear()
    with jax.set_mesh(MESH):
        assert np.asarray(program(x)).sum() == 45
    assert compiled == []


def test_who_needs_a_program_waits_while_it_is_compiled():
    program, waited = Lowered(), threading.Event()
    with Ahead() as ahead:
        ahead.add("slow", program, MESH)
        assert program.began.wait(30)

        def wait():
            ahead.wait_for("slow")
            waited.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not waited.wait(0.2)
        program.may_end.set()
        assert waited.wait(30)
        thread.join()


def test_what_has_not_begun_is_left_to_who_needs_it():
    first, second, third = Lowered(), Lowered(), Lowered()
    third.may_end.set()
    with Ahead() as ahead:
        for name, program in (("first", first), ("second", second), ("third", third)):
            ahead.add(name, program, MESH)
        assert first.began.wait(30)
        ahead.wait_for("second")
        ahead.wait_for("never added")
        first.may_end.set()
        assert third.began.wait(30)
    assert not second.began.is_set()


def test_leaving_drops_what_has_not_begun_and_waits_for_the_rest():
    first, second, left = Lowered(), Lowered(), threading.Event()
    second.may_end.set()

    def leave():
        with Ahead() as ahead:
            ahead.add("first", first, MESH)
            ahead.add("second", second, MESH)
            assert first.began.wait(30)
        left.set()

    thread = threading.Thread(target=leave)
    thread.start()
    assert first.began.wait(30)
    assert not left.wait(0.5)
    first.may_end.set()
    assert left.wait(30)
    thread.join()
    assert not second.began.is_set()


def test_a_thread_that_has_ended_is_followed_by_another():
    with Ahead() as ahead:
        for name in ("once", "again"):
            program = Lowered()
            program.may_end.set()
            ahead.add(name, program, MESH)
            assert program.began.wait(30)
            ahead.wait_for(name)
            for _ in range(300):
                if not any(thread.name == BUSY for thread in threading.enumerate()):
                    break
                time.sleep(0.1)
            else:
                pytest.fail("it lives on without work, and commands would end by force")


def test_an_error_is_left_to_who_calls_the_program():
    bad, good = Lowered(ValueError("no such operation")), Lowered()
    bad.may_end.set()
    good.may_end.set()
    with Ahead() as ahead:
        ahead.add("bad", bad, MESH)
        ahead.add("good", good, MESH)
        assert good.began.wait(30)


def test_an_error_of_the_run_is_not_kept_waiting():
    slow, ahead = Lowered(), Ahead()
    ahead.add("slow", slow, MESH)
    assert slow.began.wait(30)
    ahead.__exit__(ValueError, ValueError("of the run"), None)  # returns, although the program is not compiled
    slow.may_end.set()
    ahead.wait_for("slow")


@pytest.mark.parametrize("where", ["gpu", "debugged", "processes"])
def test_where_nothing_is_compiled_ahead(monkeypatch, where):
    if where == "gpu":
        monkeypatch.setattr(ahead_module, "current_platform", lambda: "gpu")
    elif where == "debugged":
        monkeypatch.setattr(ahead_module.debugging, "is_on", lambda: True)
    else:
        monkeypatch.setattr(jax, "process_count", lambda: 2)
    program = Lowered()
    program.may_end.set()
    with Ahead() as ahead:
        ahead.add("never", program, MESH)
        assert not program.began.wait(0.5)
