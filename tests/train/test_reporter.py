"""Lines of metrics: means over steps, of what was weighed in them."""

import jax.numpy as jnp

from sora_jax.core.mean import weight_name
from sora_jax.train.clock import StepClock
from sora_jax.train.guard import ONLY_FINITE
from sora_jax.train.metrics import MetricsWriter, read_metrics
from sora_jax.train.reporter import Reporter, StepResult


def written(path, steps, *, every):
    """Returns the lines that are written of the metrics of `steps`."""
    counts = {"skipped": 0, "unbroken": 0, "spikes": 0, "digest": 0, "spiked": False}
    with MetricsWriter(path) as writer:
        reporter = Reporter(
            "videos",
            steps=len(steps),
            every=every,
            guard=ONLY_FINITE,
            clock=StepClock(),
            writer=writer,
            cost=lambda batch: (1, 1, 0.0),
            names=lambda number: [],
        )
        for done, metrics in enumerate(steps, start=1):
            metrics = {"gradient_norm": 1.0} | counts | metrics
            values = {name: jnp.float32(value) for name, value in metrics.items()}
            assert reporter.read(StepResult(done=done, number=done, batch={}, metrics=values)) is None
        assert reporter.flush() is None
    return read_metrics(path)


def test_a_metric_is_the_mean_over_what_was_weighed(tmp_path):
    def step(loss, band, weight):
        return {"loss": loss, "loss_0_0.5": band, weight_name("loss_0_0.5"): weight}

    steps = [step(1.0, 0.25, 10), step(3.0, 0.0, 0), step(2.0, 1.0, 30), step(5.0, 0.0, 0), step(5.0, 0.0, 0)]
    first, second = written(tmp_path, steps, every=3)
    assert (first["loss"], first["loss_0_0.5"]) == (2.0, (10 * 0.25 + 30 * 1.0) / 40)
    assert second["loss"] == 5.0
    assert "loss_0_0.5" not in second, "no step weighed it"
    assert not any(key.startswith("weight") for key in first)


def test_a_metric_that_is_not_finite_is_told(tmp_path):
    steps = [{"loss": 1.0, "size": value, weight_name("size"): 1.0} for value in (2.0, jnp.nan)]
    (line,) = written(tmp_path, steps, every=2)
    assert line["size"] is None
