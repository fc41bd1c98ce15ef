"""No number of a config is taken at its word."""

import fnmatch

import pytest

from configs import base
from sora_jax.core.errors import UserError
from sora_jax.experiment.preflight import check_start
from sora_jax.experiment.ranges import AT_LEAST_ONE, DECAY, NOT_NEGATIVE, POSITIVE, RANGES, SHARE, out_of_range
from sora_jax.experiment.settings import read_settings

# Any number is a mean of logits, and a cosine may be -1.
ANY = {"diffusion.noise.mean", "recaption.min_agreement"}


def numeric_keys() -> list[tuple[str, object]]:
    """Returns (key, value) of the base config where a number is, or may be."""

    def leaves(tree, path=""):
        for key, value in tree.items():
            yield from leaves(value, f"{path}{key}.") if isinstance(value, dict) else [(f"{path}{key}", value)]

    def has_number(value) -> bool:
        if isinstance(value, tuple):
            return any(map(has_number, value))
        return isinstance(value, int | float) and not isinstance(value, bool)

    return [(key, value) for key, value in leaves(base.get_config().to_dict()) if value is None or has_number(value)]


def with_number(value, number):
    """Returns a value of a config in which the last number is another."""
    return (*value[:-1], with_number(value[-1], number)) if isinstance(value, tuple) else number


def changed(key, value) -> dict:
    tree = base.get_config().to_dict()
    *path, last = key.split(".")
    group = tree
    for name in path:
        group = group[name]
    group[last] = value
    return tree


def start(tree) -> None:
    check_start(read_settings(tree))


def test_a_negative_number_is_refused_whatever_its_key():
    keys = [(key, value) for key, value in numeric_keys() if key not in ANY]
    assert len(keys) > 120
    for key, value in keys:
        with pytest.raises(UserError) as told:
            start(changed(key, with_number(value, -1)))
        assert key.split(".")[-1].rstrip("s") in str(told.value), key


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stages.videos.steps", 0, "config.stages.videos: steps is 0: it must be at least 1"),
        ("transformer.heads", 0, "config.transformer.heads 0 must be at least 1"),
        ("transformer.patch", (1, 0, 2), "config.transformer.patch (1, 0, 2) must be at least 1"),
        ("transformer.frequency_dim", 1, "config.transformer.frequency_dim 1 must be at least 2"),
        ("autoencoder.patch", 0, "config.autoencoder.patch 0 must be at least 1"),
        ("autoencoder.multipliers", (1, 1, 0), "config.autoencoder.multipliers (1, 1, 0) must be at least 1"),
        ("text.depth", 0, "config.text.depth 0 must be at least 1"),
        ("log.samples_per_stage", -1, "config.log.samples_per_stage -1 must be at least 0"),
        ("optimizer.clip_norm", 0.0, "config.optimizer.clip_norm 0.0 must be more than 0"),
        ("optimizer.b2", 1.0, "config.optimizer.b2 1.0 must be at least 0 and less than 1"),
        ("stages.images.schedule.decay_share", 1.5, "schedule.decay_share 1.5 must be at least 0 and at most 1"),
        ("stages.autoencoder.crops.buckets", (), "config.stages.autoencoder.crops: buckets must be one or more"),
        ("packing.rows", 0, "packing.rows must be at least 1, got 0"),
        ("stages.prepare.batch", 0, "config.stages.prepare: batch is 0"),
        ("shapes.num_clips", 0, "shapes: num_clips must be at least 1, got 0"),
        ("shapes.sides", ((24, 24), (8, 24)), "shapes: a side must be (height, width) >= 16 px, got (8, 24)"),
        ("guard.window", 0, "config.guard: window must be at least 1, got 0"),
    ],
)
def test_a_number_that_cannot_work_is_refused_in_a_sentence(key, value, said):
    with pytest.raises(UserError) as told:
        start(changed(key, value))
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_all_numbers_out_of_range_are_told_at_once():
    tree = changed("text.heads", 0)
    tree["optimizer"]["b1"] = 2.0
    assert sorted(out_of_range(tree)) == [
        "config.optimizer.b1 2.0 must be at least 0 and less than 1",
        "config.text.heads 0 must be at least 1",
    ]


def test_the_base_config_and_every_range_are_in_use():
    assert out_of_range(base.get_config()) == []
    keys = [key for key, _ in numeric_keys()]
    assert [pattern for pattern in RANGES if not fnmatch.filter(keys, pattern)] == []


@pytest.mark.parametrize(
    ("wanted", "inside", "outside"),
    [
        (AT_LEAST_ONE, (1, 2.5), (0, 0.5)),
        (NOT_NEGATIVE, (0, 7), (-1e-9,)),
        (POSITIVE, (1e-9,), (0, -1)),
        (SHARE, (0, 0.5, 1), (-0.1, 1.1)),
        (DECAY, (0, 0.999), (1, -0.1)),
    ],
)
def test_a_range_has_the_ends_that_it_says(wanted, inside, outside):
    assert all(number in wanted for number in inside)
    assert not any(number in wanted for number in outside)
