"""The benchmark of the data plane measures what it says, at a size that takes seconds."""

import json
import mmap

import numpy as np
import pytest

from sora_jax.benchmarks import data, decoding
from sora_jax.benchmarks.figures import Figure, publish


def values(figures):
    return {figure.name: figure.value for figure in figures}


@pytest.mark.slow
def test_it_runs_as_a_user_runs_it(python, tmp_path):
    path = tmp_path / "new" / "data.json"
    done = python(
        "-m",
        "sora_jax.benchmarks.data",
        "--config=tests/toy.py",
        "--samples=2000",
        "--opens=200",
        f"--json={path}",
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert written["fill_8192"] >= 0.995
    assert written["fill_32768"] >= 0.995
    assert written["imbalance_64"] <= 1.05
    for name, value in written.items():
        assert value > 0 or name in ("plan_gb", "memory_mb_per_1000_clips"), name
        assert f"\n{name} " in f"\n{done.stdout}"


def test_a_folder_without_videos_is_refused_before_all_else(python, tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    for folder in (tmp_path, tmp_path / "nothing"):
        done = python("-m", "sora_jax.benchmarks.data", f"--clips={folder}")
        assert done.returncode == 2
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)
        assert f"{folder} holds no video that can be decoded: give a folder of videos" in done.stderr


def test_a_config_without_a_transformer_is_refused_before_all_else(python):
    run = "--config.run=('autoencoder','prepare')"
    done = python("-m", "sora_jax.benchmarks.data", "--config=tests/toy.py", run)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "UserError: the config has no diffusion stage: give one that trains a transformer\n"


def test_balance_is_measured_against_the_mean():
    costs = np.ones(512)
    assert values(data.balance_figures(costs)) == {"imbalance_64_unbalanced": 1.0, "imbalance_64": 1.0}
    costs[:8] = 10  # all on the first of 64 devices, as long as nobody balances
    found = values(data.balance_figures(costs))
    assert found["imbalance_64_unbalanced"] == pytest.approx(80 / (584 / 64))
    assert found["imbalance_64"] == pytest.approx(17 / (584 / 64))


def test_figures_are_printed_and_written(tmp_path, capsys):
    figures = [
        Figure(name="a", value=1234.5, target="at least 3", meaning="first, s"),
        Figure(name="long", value=0.25, target=None, meaning="second"),
    ]
    publish(figures, str(tmp_path / "x.json"))
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1234.5, "long": 0.25}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["a", "1,234", "at", "least", "3", "first,", "s"],
        ["long", "0.25", "second"],
    ]
    publish(figures, None)
    assert capsys.readouterr().out.splitlines() == lines


def test_memory_that_is_kept_is_seen(tmp_path, monkeypatch):
    kept = []
    two_megabytes = b"\1" * 2_000_000

    class Leaking(decoding.GuardedReader):
        def read_clip(self, path, **limits):
            # Mapped pages: what the allocator hands out may have been resident before.
            kept.append(mmap.mmap(-1, len(two_megabytes)))
            kept[-1].write(two_megabytes)
            return super().read_clip(path, **limits)

    monkeypatch.setattr(decoding, "GuardedReader", Leaking)
    folder = decoding.draw_videos(tmp_path, side=16, frames=5, count=1)
    assert decoding.memory_figure(folder, opens=100).value == pytest.approx(2000, rel=0.1)


def test_both_ways_decode_the_same_frames(tmp_path):
    path = next(decoding.draw_videos(tmp_path, side=96, frames=9, count=1).iterdir())
    with decoding.GuardedReader() as reader:
        ours = reader.read_clip(path)[0].astype(int)
    bare = decoding.decode_bare(path).astype(int)
    assert bare.shape == ours.shape

    def difference(shift):
        return np.abs(bare - np.roll(ours, shift, axis=0)).mean()

    # Colour at half resolution is enlarged in another way: edges differ, frames do not.
    assert difference(0) < 2
    assert difference(1) > 2 * difference(0)
