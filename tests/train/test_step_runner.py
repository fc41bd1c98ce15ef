"""Which steps are traced: those that are named, once, and no longer than the stage."""

import jax
import pytest

from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.train.step_runner import StepRunner


@pytest.mark.parametrize(
    ("profile", "steps", "expected"),
    [
        (None, [1, 2, 3], []),
        ((2, 3), [1, 2, 3, 4], ["start", 2, 3, "stop"]),
        ((2, 3), [3, 4], ["start", 3, "stop"]),
        ((2, 9), [1, 2, 3], ["start", 2, 3, "stop"]),
        ((1, 2), [1, 2, 1, 2], ["start", 1, 2, "stop"]),
        ((5, 9), [1, 2], []),
    ],
)
def test_what_is_traced(monkeypatch, tmp_path, profile, steps, expected):
    seen = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: seen.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("stop"))
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1), jax.devices()[:1])

    def step(state, batch, scalars):
        if seen and seen[-1] != "stop":
            seen.append(batch)
        return state + scalars, {}

    asked = []
    runner = StepRunner(step, 10, before=asked.append, mesh=mesh, folder=tmp_path, profile=profile)
    state = 0
    for number in steps:
        state, _ = runner(number, state, number)
    runner.close()
    assert seen == expected
    assert asked == steps
    assert state == 10 * len(steps)
