"""The numbers of the toy run, step by step: what is only moved or renamed leaves them as they are.

Processors and compilers round otherwise, so losses and norms are compared within a 100,000th and not bit for bit; where
a change is meant to alter them, take the new ones from `metrics.jsonl` and say why in the commit.
"""

import pytest

from sora_jax.train.metrics import read_metrics

# Stage, step, mean loss and mean norm of the gradient since the line before.
GOLDEN = [
    ("autoencoder", 2, 0.6047777, 0.6065888),
    ("autoencoder", 4, 0.5353352, 0.5840846),
    ("autoencoder", 6, 0.5750218, 0.5245695),
    ("autoencoder", 8, 0.5070987, 0.5036622),
    ("images", 2, 1.8068681, 0.9752825),
    ("images", 4, 1.7745987, 0.9074486),
    ("images", 6, 1.9024107, 0.9569489),
    ("videos", 2, 2.0842817, 0.9247412),
    ("videos", 4, 2.0297745, 1.0059253),
    ("videos", 6, 2.0310992, 0.9441894),
    ("videos", 8, 2.0013194, 0.7710364),
]


def test_the_toy_run_has_the_numbers_it_had(toy_workdir):
    lines = [line for line in read_metrics(toy_workdir) if "digest" in line]
    assert [(line["stage"], line["step"]) for line in lines] == [golden[:2] for golden in GOLDEN]
    for line, (stage, step, loss, norm) in zip(lines, GOLDEN, strict=True):
        assert (line["loss"], line["gradient_norm"]) == pytest.approx((loss, norm), rel=1e-5), (stage, step)
