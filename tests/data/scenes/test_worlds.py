"""The further worlds: clips are what their index says, splits share no combination, and scenes keep their word."""

import dataclasses
import itertools

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.scenes.game import FRAMES_OF_ACTION, GameScene
from sora_jax.data.scenes.parallax import PassingScene
from sora_jax.data.scenes.permanence import HidingScene
from sora_jax.data.scenes.physics import BallScene
from sora_jax.data.scenes.trail import EatingScene, PaintingScene
from sora_jax.data.scenes.worlds import WORLDS, DrawnWorlds, WorldsSpec
from sora_jax.data.tokens import BYTE_TOKENIZER

SPEC = WorldsSpec(seed=0, num_clips=100, kinds=WORLDS, sides=((24, 40),), frames=(17,), fps=(8.0,), split="train")


def scenes(kind: str, count: int = 40, **changed) -> list:
    world = DrawnWorlds(dataclasses.replace(SPEC, kinds=(kind,), num_clips=count, **changed))
    return [world.scene(index) for index in range(count)]


def test_a_clip_is_a_function_of_config_and_index_alone():
    world, longer = DrawnWorlds(SPEC), DrawnWorlds(dataclasses.replace(SPEC, num_clips=500))
    assert [world.kind(index) for index in range(5)] == list(WORLDS)
    for index in range(10):
        clip, again = world[index], longer[index]
        np.testing.assert_array_equal(clip.pixels_THWC, again.pixels_THWC)
        assert (clip.captions, clip.source_id) == (again.captions, again.source_id)
        assert clip.pixels_THWC.shape == (17, 24, 40, 3)
    assert world.origin(0) == longer.origin(0)
    assert world.origin(0) != DrawnWorlds(dataclasses.replace(SPEC, seed=1)).origin(0)
    with pytest.raises(IndexError):
        world.scene(100)


@pytest.mark.parametrize("kind", WORLDS)
def test_training_shows_no_held_out_combination_and_every_caption_fits(kind):
    train, heldout, inside = (scenes(kind, split=split) for split in ("train", "heldout", "inside"))
    assert [scene.held_out for scene in (*train, *heldout, *inside)] == [False] * 40 + [True] * 40 + [False] * 40
    assert inside[0] != train[0], "others of the same"
    assert {scene.variant for scene in train} == {scene.variant for scene in heldout}
    for scene in train:
        assert all(BYTE_TOKENIZER.count(caption) <= 24 for caption in scene.captions())


def test_an_object_is_out_of_sight_and_comes_back_whole():
    for scene in scenes("permanence"):
        assert isinstance(scene, HidingScene)
        shown_T, column_T = scene.shown_T(), scene.column_T()
        hidden = np.flatnonzero(shown_T < 0.05)
        assert shown_T[0] > 0.99
        assert len(hidden) > (2 if scene.variant == "rests" else 0)
        assert (shown_T[hidden[-1] :] > 0.99).sum() >= 2
        if scene.variant == "pans":
            assert column_T[0] == pytest.approx(column_T[-1])
        if scene.variant == "rests":
            assert np.isclose(np.diff(column_T), 0).sum() >= 3


def test_a_wall_farther_away_moves_less():
    found = [scene for scene in scenes("parallax") if scene.variant == "passing"]
    for scene in found[:5]:
        assert isinstance(scene, PassingScene)
        alone = dataclasses.replace(scene, start=(-100.0, scene.start[1]))
        wall_TW = alone.render()[:, 0, :, 0].astype(float)
        moved = (scene.column_T()[-1] - scene.start[1]) / scene.ratio
        column_W = np.arange(40.0)
        shifted_W = np.interp(column_W - moved, column_W, wall_TW[0], left=np.nan, right=np.nan)
        assert np.nanmax(np.abs(shifted_W - wall_TW[-1])) < 12, "but for what lies between pixels"
    assert {scene.ratio for scene in found} == {2, 3}


def test_what_is_painted_stays_and_what_is_eaten_stays_away():
    for scene in scenes("trail"):
        if scene.variant == "painting":
            assert isinstance(scene, PaintingScene)
            trail_THW = scene.trail_THW()
            assert (np.diff(trail_THW, axis=0) >= -1e-6).all()
            assert (trail_THW[-1] > 0.5).sum() > 40
            np.testing.assert_array_equal(scene.render()[-1], scene.render()[-2])
        else:
            assert isinstance(scene, EatingScene)
            left_TN = scene.left_TN()
            assert left_TN[0].all()
            assert not left_TN[-1].any()
            assert not (left_TN[1:] & ~left_TN[:-1]).any()


def test_a_game_obeys_its_rules():
    for scene in scenes("game"):
        assert isinstance(scene, GameScene)
        cells = scene.cells()
        assert not {*cells} & {*scene.walls}
        assert scene.start != scene.coin
        assert all(0 <= row < 3 and 0 <= column < 5 for row, column in cells)
        assert sum(a != b for a, b in itertools.pairwise(cells)) > len(scene.actions) / 2
        assert bool(scene.rich_T()[-1]) == (scene.coin in cells)
        np.testing.assert_array_equal(scene.place_T2()[::FRAMES_OF_ACTION], cells)


def test_balls_keep_to_their_laws():
    for split in ("inside", "outside"):
        for scene in scenes("physics", split=split):
            assert isinstance(scene, BallScene)
            velocity_T2 = np.diff(scene.place_T2(), axis=0)
            change_T2 = np.diff(velocity_T2, axis=0)
            if scene.variant == "flies":
                np.testing.assert_allclose(change_T2, 0, atol=1e-9)
            elif scene.variant == "falls":
                np.testing.assert_allclose(change_T2, [[scene.gravity, 0]] * 15, atol=1e-9)
            else:
                assert (np.sign(velocity_T2[0]) != np.sign(velocity_T2[-1])).any()
            assert (scene.speed == "outside") == (split == "outside")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kinds": ("permanence", "magic")}, "^worlds are of permanence, .*, got 'magic'$"),
        ({"kinds": ("game", "game")}, "^worlds name one twice: game, game$"),
        ({"kinds": ()}, "^worlds must name at least one of permanence, "),
        ({"sides": ((40, 24),)}, "no taller than wide"),
        ({"frames": (16,)}, "steps of 4, got 16"),
        ({"fps": (0.0,)}, "fps must be over 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changed, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(SPEC, **changed)
