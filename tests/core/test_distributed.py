"""Processes as one program: who they are, what they tell each other, how they end."""

import json
import re
import signal
import time

import jax
import numpy as np
import pytest

from sora_jax.core.distributed import Cluster, find_cluster, from_first, gather, is_first, joined, to_host, together
from sora_jax.core.errors import UserError
from tests.processes import free_port, start_python, wait

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
ADDRESS = "10.0.0.7:1234"

HEARTBEAT = 4
# Two processes that share a device array, until told otherwise.
PROGRAM = (
    f"HEARTBEAT = {HEARTBEAT}"
    + """
import contextlib, os, sys, time
from pathlib import Path
from absl import flags
flags.FLAGS(sys.argv[:1])
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from sora_jax.core import distributed, failure
from sora_jax.core.errors import DataError, NumericsError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.sharding import batch_part, put_whole

port, index, what, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
cluster = distributed.Cluster(coordinator=f"127.0.0.1:{port}", count=2, index=index)
with contextlib.ExitStack() as stack:
    stack.enter_context(distributed.joined(cluster, purpose={"what": what}, timeout_s=60, heartbeat_s=HEARTBEAT))
    stack.enter_context(failure.recorded(folder, process=index, processes=2))
    stack.enter_context(distributed.losses_named())
    failure.at(stage="a stage", step=7)
    mesh = make_mesh(MeshConfig(data=None, fsdp=1, sequence=1, tensor=1))
    halves = NamedSharding(mesh, P("data"))
    total = jax.jit(lambda x: (x + 1).sum(), out_shardings=NamedSharding(mesh, P()))
    local = jnp.arange(4.0) + 4 * index
    whole = jax.make_array_from_process_local_data(halves, local)
    def told(line):
        print(line, file=sys.stderr, flush=True)
    told(f"sum {float(total(whole))} host {distributed.to_host(whole).tolist()} part {batch_part(mesh)}")
    told(f"gathered {distributed.gather('here', index + 10)} first {distributed.from_first('there', lambda: index)}")
    told(f"whole {distributed.to_host(put_whole(jnp.arange(3), mesh)).tolist()}")
    print(f"printed by {index}")
    if what == "compiles":
        def compiled_slowly(x, y):
            time.sleep(3 * index)  # while it is traced
            return x + y
        add = distributed.together(jax.jit(compiled_slowly), every_time=False)
        for size in (2, 2, 3):
            distributed.wait_for_all("before")
            began = time.monotonic()
            assert add(jnp.ones(()), jnp.ones(size)).tolist() == [2] * size
            told(f"took {'long' if time.monotonic() - began > 2 else 'no time'}")
        what = "end"
    if what == "both fail":
        raise NumericsError("a loss that is not finite")
    if what == "one fails" and index == 1:
        raise DataError("a clip that is torn")
    if what == "parts" and index == 0:
        told("going on")
        distributed.wait_for_all("a place")
    while what != "end":
        told("going on")
        if what != "works":
            time.sleep(99)
        total(whole).block_until_ready()
        time.sleep(0.1)
"""
)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def find(*given, detect=False):
    return find_cluster(*given, detect=detect, timeout_s=1.0)


def test_a_process_that_nobody_told_of_others_is_alone():
    assert find(None, None, None) is None
    with joined(None, purpose={}, timeout_s=1, heartbeat_s=1):
        assert is_first()
        assert gather("a place", {"a": 1}) == [{"a": 1}]
        assert from_first("a place", lambda: 3) == 3
    np.testing.assert_array_equal(to_host(jax.numpy.arange(3)), np.arange(3))
    program = jax.jit(lambda x: x)
    assert together(program, every_time=True) is program


def test_flags_come_before_variables(monkeypatch):
    for name, value in zip(VARIABLES, (ADDRESS, "4", "3"), strict=True):
        monkeypatch.setenv(name, value)
    assert find(None, None, None) == Cluster(coordinator=ADDRESS, count=4, index=3)
    assert find("here:1", 5, 0) == Cluster(coordinator="here:1", count=5, index=0)
    assert find(None, 1, 0) is None, "one is none"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((ADDRESS, None, None), r"missing --process_count \(JAX_NUM_PROCESSES\), --process_index \(JAX_PROCESS_ID\)$"),
        ((None, 2, 0), r"missing --coordinator \(JAX_COORDINATOR_ADDRESS\)$"),
        (("10.0.0.7", 2, 0), r"--coordinator=10\.0\.0\.7 has no port: give HOST:PORT"),
        ((ADDRESS, 2, 2), r"--process_index=2 is not below --process_count=2"),
    ],
)
def test_what_does_not_fit_together_is_told(given, said):
    with pytest.raises(UserError, match=said):
        find(*given)


def test_a_variable_that_is_no_number_is_told(monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(UserError, match="JAX_PROCESS_ID=first is not a number"):
        find(ADDRESS, 2, None)


def test_a_job_of_slurm_is_found_only_when_asked_for(monkeypatch):
    with pytest.raises(
        UserError, match=r"--distributed found no TPU pod, Slurm or MPI job around this process; several"
    ):
        find(None, None, None, detect=True)
    job = {
        "JOB_ID": "5",
        "STEP_NODELIST": "n[3-4]",
        "NTASKS": "2",
        "PROCID": "1",
        "LOCALID": "0",
        "STEP_NUM_NODES": "2",
    }
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert find(None, None, None) is None
    assert find(None, None, None, detect=True) == Cluster(coordinator="n3:61445", count=2, index=1, devices=(0,))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", ADDRESS)
    assert find(None, None, None, detect=True) == Cluster(coordinator=ADDRESS, count=2, index=1, devices=(0,))


def test_an_address_may_be_in_brackets():
    assert Cluster(coordinator="[::1]:80", count=2, index=0).address == ("::1", 80)


def pair(what, folder):
    port = free_port()
    return [start_python("-c", PROGRAM, port, index, what, folder) for index in range(2)]


def test_no_process_runs_a_program_before_all_have_compiled_it(tmp_path):
    """Also the one that compiles at once, and that exchanges nothing with the other."""
    for code, _, errors in wait(pair("compiles", tmp_path), seconds=120):
        assert code == 0, errors
        assert [line for line in errors.splitlines() if line.startswith("took")] == [
            "took long",
            "took no time",
            "took long",
        ]


def read_record(folder, index):
    path = folder / ("failure.json" if index == 0 else f"failure-{index}.json")
    return json.loads(path.read_text()) if path.exists() else None


def test_two_processes_hold_arrays_together_and_agree(tmp_path):
    (tmp_path / "failure-1.json").write_text("of an earlier run")
    (tmp_path / "failure-2.json").write_text("of an earlier run of more")
    ends = wait(pair("end", tmp_path), seconds=120)
    assert not list(tmp_path.iterdir())
    assert [code for code, _, _ in ends] == [0, 0], ends
    for index, (_, _, errors) in enumerate(ends):
        assert f"sum 36.0 host {[float(i) for i in range(8)]} part ({index}, 2)" in errors
        assert "gathered [10, 11] first 0" in errors
        assert "whole [0, 1, 2]" in errors
    assert "printed by 0" in ends[0][1]
    assert "printed by" not in ends[1][1], "process 0 speaks for all"


def test_what_happens_to_both_is_told_by_both(tmp_path):
    for index, (code, _, errors) in enumerate(wait(pair("both fail", tmp_path), seconds=120)):
        assert code == 65
        assert errors.endswith("NumericsError: a loss that is not finite\n")
        assert read_record(tmp_path, index)["cause"] == "a loss that is not finite"


def test_what_happens_to_one_ends_the_other(tmp_path):
    (other, _, said), (failed, _, errors) = wait(pair("one fails", tmp_path), seconds=120)
    assert (failed, other) == (66, 75), said
    assert "DataError: a clip that is torn\n" in errors
    assert "PeerLost: process 0 of 2 " in said.splitlines()[-1]
    assert [read_record(tmp_path, index)["kind"] for index in range(2)] == ["PeerLost", "DataError"]


@pytest.mark.parametrize(
    ("what", "victim", "blow"),
    [
        ("works", 0, signal.SIGKILL),
        ("sleeps", 1, signal.SIGKILL),
        ("parts", 1, signal.SIGSTOP),
        pytest.param("works", 1, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("works", 1, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param("sleeps", 0, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_the_survivor_of_a_lost_process_ends_in_time_with_a_record(tmp_path, what, victim, blow):
    """Killed or stopped, at work or not, the coordinator or another, while the survivor waits for it at a barrier."""
    processes = pair(what, tmp_path)
    survivor = processes[1 - victim]
    while "going on" not in survivor.stderr.readline():
        assert survivor.poll() is None
    processes[victim].send_signal(blow)
    began = time.monotonic()
    (end,) = wait([survivor], seconds=60)
    took = time.monotonic() - began
    processes[victim].kill()
    wait([processes[victim]], seconds=60)
    code, _, errors = end
    assert code == 75, errors
    assert took < HEARTBEAT + 5
    assert "PeerLost: process " in errors
    record = read_record(tmp_path, 1 - victim)
    assert (record["code"], record["kind"], record["stage"], record["step"]) == (75, "PeerLost", "a stage", 7)
    assert re.fullmatch(r"2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["time"])
    assert record["time"] > "2001"
    assert read_record(tmp_path, victim) is None
