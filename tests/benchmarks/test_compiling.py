"""The benchmark of what programs are compiled with tells both figures of each stage that trains."""

import json

import pytest


@pytest.mark.slow
def test_it_runs_as_a_user_runs_it(python, tmp_path):
    path = tmp_path / "compiling.json"
    done = python(
        "-m", "sora_jax.benchmarks.compiling", "--config=tests/toy.py", "--rounds=1", f"--json={path}"
    )  # both ways are compiled anew, whatever a cache holds
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert min(written.values()) > 0
    for stage in ("autoencoder", "videos"):
        assert {f"{stage}_compile_s", f"{stage}_compile_ratio", f"{stage}_ms", f"{stage}_ratio"} <= written.keys()
