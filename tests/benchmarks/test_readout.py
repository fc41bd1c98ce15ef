"""The benchmark that reads classes of words from a frozen encoder's states."""

import json

import numpy as np

from sora_jax.benchmarks import readout
from tests.small_encoder import write_t5


def states_of(rng, *, apart):
    """Returns (V, E) names and (N, E) of two lots of words, in three classes that lie so far `apart`."""
    middle_VE = apart * np.eye(3, 12)
    words = [[one + rng.standard_normal((count, 12)) for one in middle_VE] for count in (9, 4)]
    return middle_VE, *words


def test_classes_that_lie_apart_are_read_and_others_are_not():
    rng = np.random.default_rng(0)
    shares = {}
    for apart in (0.0, 30.0):
        left_out, unseen = readout.figures_of("colour", *states_of(rng, apart=apart))
        assert [left_out.name, unseen.name] == ["colour_left_out", "colour_unseen"]
        assert "27" in left_out.meaning
        assert "12" in unseen.meaning
        shares[apart] = [left_out.value, unseen.value]
    assert shares[30.0] == [1.0, 1.0]
    assert max(shares[0.0]) < 0.7


def test_a_word_that_is_left_out_takes_no_part_in_reading_itself():
    middle_VE, (first, *others), unseen = states_of(np.random.default_rng(0), apart=30.0)
    first[0] = -100 * np.ones(12) + middle_VE[1] * 9  # much like none of its class
    left_out, _ = readout.figures_of("colour", middle_VE, [first, *others], unseen)
    assert left_out.value < 1.0


def test_a_class_of_many_words_does_not_outvote_the_others():
    rng = np.random.default_rng(0)
    state_NE = np.concatenate([rng.standard_normal((300, 4)) - 2, rng.standard_normal((3, 4)) + 2])
    class_N = np.repeat([0, 1], [300, 3])
    asked_NE = rng.standard_normal((40, 4)) + 2
    assert np.mean(readout.classify(asked_NE, state_NE, class_N) == 1) > 0.9


def test_a_frozen_encoder_is_read_as_a_user_runs_it_and_another_is_refused(python, tmp_path):
    weights, path = write_t5(tmp_path / "t5"), tmp_path / "readout.json"
    flags = ("--config.text.encoder=umt5", f"--config.text.weights={weights}", f"--json={path}")
    done = python("-m", "sora_jax.benchmarks.readout", *flags)
    assert done.returncode == 0, done.stderr
    shares = json.loads(path.read_text())
    assert set(shares) == {f"{what}_{words}" for what in ("colour", "shape") for words in ("left_out", "unseen")}
    assert all(0 <= share <= 1 for share in shares.values())
    refused = python("-m", "sora_jax.benchmarks.readout")
    assert refused.returncode == 2
    assert "pass a frozen one" in refused.stderr
