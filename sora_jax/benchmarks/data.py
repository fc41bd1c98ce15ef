"""What the data plane costs and how well it packs, against what training needs in the same run.

  python -m sora_jax.benchmarks.data --json=data.json --clips=DIR

Letters: N samples, B rows of a global batch.
"""

import itertools
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sora_jax.benchmarks.decoding import decoding_figures, readable
from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.benchmarks.made_up_data import last_stage, prepare_noise, seconds_of_step
from sora_jax.core.commands import Flags, run_command
from sora_jax.data.media.guarded import GuardedReader
from sora_jax.data.packing.pipeline import RowDataset
from sora_jax.data.packing.plan import Budget, balance_order, plan_window
from sora_jax.data.packing.rows import Lengths, Pool, RowPlan
from sora_jax.experiment.settings import Settings, read_settings

_FLAGS = Flags()
_JSON = _FLAGS.figures()
_CONFIG = _FLAGS.config("config", "configs/base.py", "Whose step loading is compared with.")
_CLIPS = _FLAGS.path("clips", None, "Folder of the videos that are decoded; by default some are drawn.")
_OPENS = _FLAGS.integer("opens", 10_000, "Clips that are opened while memory is watched.", least=100)
_SAMPLES = _FLAGS.integer("samples", 100_000_000, "Samples of the largest plan.", least=1_000)
_FLAGS.rename("step_config", "config")

# Rows that are planned together, and rows of a global batch on each of the devices.
_WINDOW, _DEVICES, _ROWS_PER_DEVICE = 16_384, 64, 8


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    settings = read_settings(_CONFIG.value)
    last_stage(settings)  # refused before all that takes minutes, as clips are
    if _CLIPS.value is not None:
        with GuardedReader() as reader:
            readable(reader, Path(_CLIPS.value))
    figures = [*packing_figures(8_192), *packing_figures(32_768), *plan_figures(_SAMPLES.value)]
    with tempfile.TemporaryDirectory() as folder:
        figures += loading_figures(settings, Path(folder) / "shards")
        figures += decoding_figures(_CLIPS.value, Path(folder), opens=_OPENS.value)
    publish(figures, _JSON.value)


def lengths_of_a_mix(count: int, longest: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and text tokens, each (count,), of images of four sizes and clips of 144 to `longest` tokens."""
    generator = np.random.default_rng(seed)
    images = generator.choice([144, 256, 576, 1024], count)
    clips = np.exp(generator.uniform(np.log(144), np.log(longest), count)).astype(np.int64)
    return np.where(generator.random(count) < 0.5, images, clips), generator.integers(5, 120, count)


def budget_of(tokens: int) -> Budget:
    """Returns what a row of so many tokens holds."""
    return Budget(tokens=tokens, text_tokens=tokens // 4, segments=tokens // 128)


def packing_figures(tokens: int) -> list[Figure]:
    """Returns fill, planning speed and, for the shorter rows, balance over devices, at rows of `tokens` tokens."""
    tokens_N, text_N = lengths_of_a_mix(_WINDOW, tokens, seed=0)
    seconds = []
    for window in range(5):
        began = time.perf_counter()
        plan = plan_window(tokens_N, text_N, budget_of(tokens), seed=0, window=window)
        seconds.append(time.perf_counter() - began)
    fill = float(tokens_N.sum() / (len(plan) * tokens))
    figures = [
        Figure(name=f"fill_{tokens}", value=fill, target="at least 0.995", meaning="real tokens over tokens of rows")
    ]
    if tokens == 8_192:
        cost_R = np.array([np.sum(tokens_N[plan.row(row)].astype(float) ** 2) for row in range(len(plan))])
        figures += balance_figures(cost_R)
        figures.append(
            Figure(
                name="plan_samples_per_second",
                value=len(tokens_N) / float(np.median(seconds)),
                target="at least 200,000",
                meaning=f"samples planned in a second, in windows of {_WINDOW:,}",
            )
        )
    return figures


def balance_figures(cost_R: np.ndarray) -> list[Figure]:
    """Returns how much more the fullest of 64 devices computes than the mean, with and without balancing."""
    batch = _DEVICES * _ROWS_PER_DEVICE

    def imbalance(order) -> float:
        worst = []
        for start in range(0, len(cost_R) - batch + 1, batch):
            cost_B = cost_R[start : start + batch]
            shares = cost_B[order(cost_B)].reshape(_DEVICES, -1).sum(axis=1)
            worst.append(shares.max() / shares.mean())
        return float(np.mean(worst))

    meaning = f"sum of n^2 of the fullest device over the mean, {_DEVICES} devices of {_ROWS_PER_DEVICE} rows"
    return [
        Figure(
            name="imbalance_64_unbalanced",
            value=imbalance(lambda cost_B: np.arange(len(cost_B))),
            target=None,
            meaning="the same before balancing",
        ),
        Figure(name="imbalance_64", value=imbalance(balance_order), target="at most 1.05", meaning=meaning),
    ]


def plan_figures(samples: int) -> list[Figure]:
    """Returns the memory that the plan of many samples takes, and the time until its first row."""
    before = _peak_bytes()
    generator = np.random.default_rng(0)
    tokens_N = generator.integers(144, 8_192, samples, dtype=np.int32)
    lengths = Lengths(
        tokens_N=tokens_N,
        text_tokens_M=np.full(samples, 20, np.int16),
        caption_start_N1=np.arange(samples + 1, dtype=np.int64),
    )
    pools = [Pool(ids_N=np.arange(samples), share=1.0)]
    began = time.perf_counter()
    plan = RowPlan(lengths, pools, budget_of(8_192), seed=0, window=_WINDOW, rows_per_batch=_DEVICES)
    plan.row(0)
    seconds = time.perf_counter() - began
    return [
        Figure(
            name="plan_gb",
            value=(_peak_bytes() - before) / 1e9,
            target="under 4 for 100 million samples",
            meaning=f"memory of the lengths and the plan of {samples:,} samples, GB",
        ),
        Figure(name="plan_first_row_seconds", value=seconds, target=None, meaning="until its first row is known"),
    ]


def loading_figures(settings: Settings, folder: Path) -> list[Figure]:
    """Returns how much faster one worker loads prepared rows than the config's step eats them."""
    rows = RowDataset(
        prepare_noise(settings, folder, count=1_024),
        settings.packing,
        patch=settings.transformer.patch,
        time_rate=settings.transformer.time_rate,
        tokenizer=settings.text_encoder.tokenizer,
        seed=0,
    )
    with rows.batches(threads=1) as batches:
        packs = list(itertools.islice(batches, 40))  # the first batches plan a window
        began = time.perf_counter()
        more = list(itertools.islice(batches, 200))
        load_seconds = (time.perf_counter() - began) / len(more)
    step_seconds = seconds_of_step(settings, packs)
    tokens = sum(np.count_nonzero(pack["segment_BL"]) for pack in more) / len(more)
    megabytes = sum(value.nbytes for value in more[0].values()) / 1e6
    return [
        Figure(
            name="load_tokens_ratio",
            value=step_seconds / load_seconds,
            target="at least 20",
            meaning="tokens loaded by one worker over tokens that the config's step takes, in the same time",
        ),
        Figure(name="load_tokens_per_second", value=tokens / load_seconds, target=None, meaning="by one worker"),
        Figure(name="load_mb_per_second", value=megabytes / load_seconds, target=None, meaning="arrays of packs"),
        Figure(name="step_tokens_per_second", value=tokens / step_seconds, target=None, meaning="of the base config"),
    ]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    run_command(main, _FLAGS)
