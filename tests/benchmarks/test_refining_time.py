"""The benchmark of refining times what a user asks for, at once and in passes."""

import json

import pytest


@pytest.mark.slow
def test_it_runs_as_a_user_runs_it(python, toy_workdir, tmp_path):
    path = tmp_path / "times.json"
    flags = (f"--workdir={toy_workdir}", "--refine=time:2", "--steps=1", "--rounds=1", f"--json={path}")
    done = python("-m", "sora_jax.benchmarks.refining_time", *flags)
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert written["one_pass_seconds"] > 0
    assert 0.1 < written["passes_ratio"] < 20
    assert "passes_fewer_ratio" not in written, "the run has no refiner whose steps could be fewer"
