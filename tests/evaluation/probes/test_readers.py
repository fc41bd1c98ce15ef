"""Readers of the worlds: the truth is right, also blurred and noisy; what is spoiled in one way or another is wrong."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from sora_jax.data.scenes.drawing import DrawnScene
from sora_jax.data.scenes.game import GameScene
from sora_jax.data.scenes.parallax import PassingScene
from sora_jax.data.scenes.physics import BallScene
from sora_jax.data.scenes.worlds import WORLDS, DrawnWorlds, WorldsSpec
from sora_jax.evaluation.probes.judge import READERS, read_scene

COUNT, GIVEN = 10, 5
SPEC = WorldsSpec(
    seed=3, num_clips=COUNT, kinds=("game",), sides=((24, 40),), frames=(17,), fps=(8.0,), split="heldout"
)
RNG = np.random.default_rng(0)


def blurred(clip: np.ndarray) -> np.ndarray:
    """Returns a clip as a middling model draws it: soft, with noise of 6 of 255."""
    padded = np.pad(clip.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    soft = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
    return np.clip(soft + RNG.normal(0, 6, soft.shape), 0, 255).round().astype(np.uint8)


# Of the new frames of a clip.
SPOILT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "shuffled": lambda new: new[np.arange(len(new)) * 5 % len(new)],
    "removed": lambda new: np.repeat(new.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8),
    "recoloured": lambda new: new[..., [1, 2, 0]],
    "frozen": lambda new: np.repeat(new[:1], len(new), axis=0),
}


def scenes(kind: str, count: int = COUNT) -> list[DrawnScene]:
    world = DrawnWorlds(dataclasses.replace(SPEC, kinds=(kind,), num_clips=count))
    return [world.scene(index) for index in range(count)]


def right(scene: DrawnScene, clip: np.ndarray) -> float:
    return read_scene(scene, clip, 1 if scene.variant == "game" else GIVEN)["right"]


@pytest.mark.parametrize("kind", WORLDS)
def test_the_truth_is_right_and_what_is_spoiled_is_wrong(kind):
    drawn = scenes(kind)
    truths = [scene.render() for scene in drawn]
    assert {scene.variant for scene in drawn} <= READERS.keys()
    assert np.mean([right(scene, clip) for scene, clip in zip(drawn, truths, strict=True)]) == 1.0
    assert np.mean([right(scene, blurred(clip)) for scene, clip in zip(drawn, truths, strict=True)]) >= 0.9
    others = [
        right(scene, next(clip for other, clip in zip(drawn, truths, strict=True) if unlike(scene, other)))
        for scene in drawn
    ]
    assert np.mean(others) == 0.0
    for name, spoil in SPOILT.items():
        spoiled = [np.concatenate([clip[:GIVEN], spoil(clip[GIVEN:])]) for clip in truths]
        assert np.mean([right(scene, clip) for scene, clip in zip(drawn, spoiled, strict=True)]) <= 0.1, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORLDS)
def test_the_truth_is_right_nearly_always(kind):
    drawn = scenes(kind, 300)
    assert np.mean([right(scene, scene.render()) for scene in drawn]) >= 0.99


def unlike(scene: DrawnScene, other: DrawnScene) -> bool:
    """Whether another scene shows something else: its caption is another one."""
    return scene.captions()[0] != other.captions()[0]


@pytest.mark.parametrize("kind", WORLDS)
def test_the_truth_is_right_in_the_shortest_clips(kind):
    world = DrawnWorlds(dataclasses.replace(SPEC, kinds=(kind,), frames=(9,)))
    drawn = [scene for scene in map(world.scene, range(COUNT)) if scene.variant != "turning"]
    assert [right(scene, scene.render()) for scene in drawn] == [1.0] * len(drawn)


def test_errors_say_by_how_much():
    scene = next(scene for scene in scenes("physics") if scene.variant == "flies")
    assert isinstance(scene, BallScene)
    faster = dataclasses.replace(scene, velocity=(1.2 * scene.velocity[0], 1.2 * scene.velocity[1]))
    later = np.concatenate([scene.render()[:GIVEN], faster.render()[GIVEN:]])
    found = read_scene(scene, later, GIVEN + 1)
    assert found["velocity_error"] == pytest.approx(0.2, abs=0.05)
    assert found["energy_drift"] < 0.2
    assert found["angle_error"] < 5

    passing = next(scene for scene in scenes("parallax") if scene.variant == "passing")
    assert isinstance(passing, PassingScene)
    near = dataclasses.replace(passing, distance="twice")
    far = dataclasses.replace(passing, distance="three times")
    assert read_scene(near, far.render(), GIVEN)["ratio_error"] == pytest.approx(0.5, abs=0.05)

    painting = next(scene for scene in scenes("trail") if scene.variant == "painting")
    clip = painting.render()
    longer = np.concatenate([clip, np.repeat(clip[-1:], 34, axis=0)])
    assert read_scene(painting, longer, GIVEN)["right"] == 1.0
    longer[-1, :, :20] = clip[0, :, :20].mean()
    assert read_scene(painting, longer, GIVEN)["kept_share"] < 0.9


def test_walls_are_not_to_be_entered():
    for scene in scenes("game"):
        assert isinstance(scene, GameScene)
        found = read_scene(dataclasses.replace(scene, walls=(scene.cells()[-1],)), scene.render(), 1)
        assert found["free"] == 0
        assert found["walls"] > 0
