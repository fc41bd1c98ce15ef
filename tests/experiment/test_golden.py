"""The numbers of the toy run, step by step: what is only moved or renamed leaves them as they are.

Processors and compilers round otherwise, so losses and norms are compared within a 100,000th and not bit for bit. What
reads prepared latents is compared within a 10,000th: those are stored in bfloat16, and of 11,136 numbers that two
compilers gave, 103 lay so near the middle of two that they were stored as one and as the other. Where a change is meant
to alter the numbers, take the new ones from `metrics.jsonl` and say why in the commit.
"""

import pytest

from sora_jax.train.metrics import read_metrics

# Stage, step, mean loss and mean norm of the gradient since the line before.
GOLDEN = [
    ("autoencoder", 2, 0.6069070, 0.5976469),
    ("autoencoder", 4, 0.5350000, 0.5872329),
    ("autoencoder", 6, 0.5749758, 0.5148637),
    ("autoencoder", 8, 0.5060801, 0.4962815),
    ("images", 2, 1.7966934, 0.9793279),
    ("images", 4, 1.7652481, 0.9072621),
    ("images", 6, 1.8932192, 0.9591420),
    ("videos", 2, 2.0863591, 0.9203872),
    ("videos", 4, 2.0311518, 1.0164245),
    ("videos", 6, 2.0313933, 0.9436315),
    ("videos", 8, 2.0066309, 0.7701382),
]


def test_the_toy_run_has_the_numbers_it_had(toy_workdir):
    lines = [line for line in read_metrics(toy_workdir) if "digest" in line]
    assert [(line["stage"], line["step"]) for line in lines] == [golden[:2] for golden in GOLDEN]
    for line, (stage, step, loss, norm) in zip(lines, GOLDEN, strict=True):
        within = 1e-5 if stage == "autoencoder" else 1e-4
        assert (line["loss"], line["gradient_norm"]) == pytest.approx((loss, norm), rel=within), (stage, step)
