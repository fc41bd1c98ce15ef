"""What being safe costs."""

import itertools
import runpy
import statistics
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from sora_jax.benchmarks.drills.bench import Bench
from sora_jax.benchmarks.drills.registry import Result, Tally, drill
from sora_jax.benchmarks.made_up_data import prepare_noise, seconds_of_step
from sora_jax.checkpoints import manifest
from sora_jax.checkpoints.checkpoint import Checkpointer
from sora_jax.core import rng
from sora_jax.core.mesh import make_mesh
from sora_jax.data.packing.pipeline import RowDataset
from sora_jax.experiment.recipes import state_maker
from sora_jax.experiment.settings import Settings, read_settings

_SAVES, _LARGEST = 5, 0.01
_DIGESTED_MB = 256


@drill(target="under 1 % of the run", full=1)
def saving_cost(bench: Bench, count: int) -> Result:
    """The state of the base config's last stage is saved several times, and a few of its steps are timed.

    What counts is how long `save` keeps the loop waiting, over the time between two saves. The time until the commit
    and the speed of digests are told beside.
    """
    settings = read_settings(runpy.run_path(bench.config)["get_config"]())
    tally, told = Tally(), ""
    for _ in range(count):
        step = step_seconds(settings, bench)
        blocked, committed, megabytes = save_seconds(settings, bench)
        share = blocked / (settings.checkpoint.every_steps * step + blocked)
        told = (
            f"{share:.3%}: {blocked * 1e3:.0f} ms for {megabytes:.0f} MB each {settings.checkpoint.every_steps} steps "
            f"of {step * 1e3:.0f} ms; committed after {committed:.1f} s; digests {digest_speed(bench):.1f} GB/s"
        )
        tally.check("" if share < _LARGEST else "too long")
    return tally.result(told)


def step_seconds(settings: Settings, bench: Bench) -> float:
    """Returns the seconds of a step of the last stage on rows as full as training's."""
    transformer = settings.transformer
    rows = RowDataset(
        prepare_noise(settings, bench.new("noise"), count=256),
        settings.packing,
        patch=transformer.patch,
        time_rate=transformer.time_rate,
        tokenizer=settings.text_encoder.tokenizer,
        seed=0,
    )
    with rows.batches(threads=1) as batches:
        return seconds_of_step(settings, list(itertools.islice(batches, 16)))


def save_seconds(settings: Settings, bench: Bench) -> tuple[float, float, float]:
    """Returns how long a save keeps the caller, how long until it is committed (medians, s), and its size, MB."""
    maker = state_maker(settings, settings.run[-1], make_mesh(settings.mesh))
    state = maker.fresh(rng.key(0, "drill"))
    blocked, committed = [], []
    with Checkpointer(bench.new("saves"), settings.checkpoint) as saver:
        for step in range(_SAVES):
            jax.block_until_ready(state)
            began = time.perf_counter()
            saver.save(step, state, {"step": step}, {})
            blocked.append(time.perf_counter() - began)
            saver.wait()
            committed.append(time.perf_counter() - began)
    leaves: list[Any] = jax.tree.leaves(state)
    return statistics.median(blocked), statistics.median(committed), sum(leaf.nbytes for leaf in leaves) / 1e6


def digest_speed(bench: Bench) -> float:
    """Returns how fast the manifest of files in the page cache is made, GB/s."""
    folder = bench.new("digested")
    folder.mkdir()
    for number in range(8):
        content = np.random.default_rng(number).bytes(_DIGESTED_MB * 1_000_000 // 8)
        (folder / str(number)).write_bytes(content)
    began = time.perf_counter()
    manifest.write_manifest(epath.Path(folder), name="speed")
    return _DIGESTED_MB / 1e3 / (time.perf_counter() - began)
