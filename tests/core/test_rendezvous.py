"""Processes that meet, and what is said of those that do not."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sora_jax.core.errors import PeerLost, UserError
from sora_jax.core.rendezvous import meet
from tests.processes import free_port


def outcomes(*processes, count=3, timeout_s=5.0):
    """Returns what `meet` does for each (index, changes): None, or its error."""
    port = free_port()

    def one(process):
        index, changes = process
        arguments = {"count": count, "purpose": {"config": "a"}, "timeout_s": timeout_s} | changes
        try:
            meet(("127.0.0.1", port), index=index, **arguments)
        except (PeerLost, UserError) as error:
            return error

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, processes))


def test_all_that_come_go_on():
    assert outcomes((2, {}), (0, {}), (1, {})) == [None] * 3


def test_the_first_may_come_last():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(meet, ("127.0.0.1", port), count=2, index=1, purpose={}, timeout_s=60)
        time.sleep(0.5)
        meet(("127.0.0.1", port), count=2, index=0, purpose={}, timeout_s=60)
        assert other.result() is None


def test_one_that_does_not_come_is_named_to_all():
    began = time.monotonic()
    found = outcomes((0, {}), (1, {}), count=4, timeout_s=1.0)
    assert time.monotonic() - began < 3
    for error in found:
        assert isinstance(error, PeerLost)
        assert "2 of 4 processes did not come to port" in str(error)
        assert "within 1 s: process 2, 3; start them" in str(error)


def test_without_the_first_each_says_where_it_waited():
    (error,) = outcomes((1, {}), timeout_s=0.5)
    assert isinstance(error, PeerLost)
    assert "process 0 did not answer process 1 at 127.0.0.1:" in str(error)
    assert "within 0.5 s (Connection refused): start it" in str(error)


def test_a_host_without_an_address_is_named():
    with pytest.raises(
        PeerLost, match=r"process 0 did not answer process 1 at no\.such\.host\.invalid:1 within 0\.3 s"
    ):
        meet(("no.such.host.invalid", 1), count=2, index=1, purpose={}, timeout_s=0.3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"count": 2},
            "process 1 was started with --process_count=2 and process 0 with 3: give all processes the same",
        ),
        ({"purpose": {"config": "b"}}, "process 1 was started with another config than process 0: give all the same"),
    ],
)
def test_processes_of_different_runs_part_at_once(changes, said):
    found = outcomes((0, {}), (1, changes))
    assert [str(error) for error in found] == [said] * 2
    assert all(isinstance(error, UserError) for error in found)


def test_two_of_one_number_are_told():
    found = outcomes((0, {}), (1, {}), (1, {}))
    assert [str(error) for error in found] == [
        "two processes were started with --process_index=1: give each its own, from 0 on"
    ] * 3


def test_strangers_and_those_that_come_again_do_no_harm():
    port = free_port()
    failed = []

    def first():
        try:
            meet(("127.0.0.1", port), count=3, index=0, purpose={}, timeout_s=60)
        except Exception as error:
            failed.append(error)

    listening = threading.Thread(target=first)
    listening.start()
    for said in (b"GET / HTTP/1.0\n", b"", b'{"count": 3, "index": 1, "purpose": {}}\n'):
        caller = socket.socket()
        until = time.monotonic() + 5
        while time.monotonic() < until:
            with contextlib.suppress(ConnectionRefusedError):
                caller.connect(("127.0.0.1", port))
                break
            time.sleep(0.05)
        caller.sendall(said)
        caller.close()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(meet, ("127.0.0.1", port), count=3, index=2, purpose={}, timeout_s=60)]
        time.sleep(0.5)  # the one that has gone was the first of all that come
        both.append(pool.submit(meet, ("127.0.0.1", port), count=3, index=1, purpose={}, timeout_s=60))
    listening.join(60)
    assert [one.result() for one in both] == [None] * 2
    assert failed == []


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"process 0 cannot listen at port {port} .*: give another in --coordinator"
        ):
            meet(("127.0.0.1", port), count=2, index=0, purpose={}, timeout_s=1)
