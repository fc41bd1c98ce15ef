"""The evaluator: what it asks for, what it counts, and the scores of models that are perfect or useless."""

import numpy as np
import pytest

from sora_jax.data.clips import Clip
from sora_jax.data.shapes_world import ShapesWorld, WorldConfig, case_of, heldout_prompts
from sora_jax.evaluation import pixels
from sora_jax.evaluation.evaluator import judge_autoencoder, judge_prompts

COUNT = 16


def drawings():
    """Returns a drawn clip for each held-out prompt, as a perfect generator would make it."""
    config = WorldConfig(
        seed=0, num_clips=2000, sides=((32, 32),), frames=(9,), image_share=0.0, fps=(8.0,), split="heldout"
    )
    world, wanted, found = ShapesWorld(config), {case.prompt for case in heldout_prompts(COUNT)}, {}
    for index in range(config.num_clips):
        prompt = case_of(world.scene(index)).prompt
        if prompt in wanted and prompt not in found:
            found[prompt] = world[index].pixels_THWC
    assert found.keys() == wanted
    return found


class Painter:
    """Stands for the sampler: answers each canvas by `paint` and remembers what it was asked."""

    def __init__(self, paint):
        self.paint = paint

    def __call__(self, params, canvases):
        self.params, self.canvases = params, canvases
        return [self.paint(canvas) for canvas in canvases]


def judge(paint, count=COUNT):
    painter = Painter(paint)
    judged = judge_prompts(painter, {"w": 1}, count=count, grid=(3, 4, 4), fps=8.0, seed=100)
    return painter, judged


def test_a_generator_that_draws_what_it_is_told_scores_fully():
    found = drawings()
    painter, judged = judge(lambda canvas: found[canvas.prompt])
    assert judged.scores.keys() == {"prompts", "colour", "shape", "motion", "all", "persistent"}
    assert judged.scores["prompts"] == COUNT
    assert all(judged.scores[name] == 1 for name in judged.scores if name != "prompts"), judged.scores
    assert judged.prompts == [case.prompt for case in heldout_prompts(COUNT)]
    for prompt, clip in zip(judged.prompts, judged.clips, strict=True):
        np.testing.assert_array_equal(clip, found[prompt])
    assert painter.params == {"w": 1}


def test_a_generator_that_mixes_up_its_requests_does_not():
    found = drawings()
    prompts = list(found)
    _, judged = judge(lambda canvas: found[prompts[prompts.index(canvas.prompt) - 1]])
    assert judged.scores["all"] < 0.2


@pytest.mark.parametrize("count", [1, 5])
def test_a_generator_of_nothing_scores_nothing(count):
    _, judged = judge(lambda canvas: np.full((9, 32, 32, 3), 120, np.uint8), count)
    assert judged.scores.pop("prompts") == count
    assert set(judged.scores.values()) == {0.0}
    assert len(judged.clips) == len(judged.prompts) == count


def test_each_prompt_has_the_size_asked_for_and_noise_of_its_own():
    painter, _ = judge(lambda canvas: np.zeros((9, 32, 32, 3), np.uint8))
    assert [canvas.seed for canvas in painter.canvases] == list(range(100, 100 + COUNT))
    assert {(canvas.grid, canvas.fps) for canvas in painter.canvases} == {((3, 4, 4), 8.0)}


class Damage:
    """Stands for the codec: adds `amount` to every pixel and remembers the shapes it was given."""

    def __init__(self, amount):
        self.amount = amount
        self.shapes = []

    def reconstruct(self, pixels_BTHWC):
        self.shapes.append(pixels_BTHWC.shape)
        return pixels_BTHWC + np.uint8(self.amount)


def make_clips():
    sizes = [(1, 16, 16)] * 3 + [(5, 16, 24)] * 2 + [(1, 16, 16)] * 17 + [(5, 8, 8)]
    noise = np.random.default_rng(0)
    return [
        Clip(
            pixels_THWC=noise.integers(0, 200, size=(*size, 3), dtype=np.uint8),
            fps=8.0,
            captions=(),
            source_id=str(number),
        )
        for number, size in enumerate(sizes)
    ]


def test_a_perfect_autoencoder_has_the_greatest_scores():
    assert judge_autoencoder(Damage(0), make_clips()) == {"clips": 23, "psnr": 100.0, "ssim": pytest.approx(1.0)}


def test_clips_of_several_sizes_count_alike():
    clips, codec = make_clips(), Damage(7)
    scores = judge_autoencoder(codec, clips)
    damaged = [clip.pixels_THWC + np.uint8(7) for clip in clips]
    pairs = [(clip.pixels_THWC, other) for clip, other in zip(clips, damaged, strict=True)]
    assert scores["clips"] == len(clips)
    assert scores["psnr"] == pytest.approx(np.mean([pixels.psnr(*pair) for pair in pairs]))
    assert scores["ssim"] == pytest.approx(np.mean([pixels.ssim(*pair) for pair in pairs]))
    assert max(shape[0] for shape in codec.shapes) <= 16, "memory is bounded"
    assert sum(shape[0] for shape in codec.shapes) == len(clips)


def test_the_scores_are_means_over_clips_not_over_sizes():
    """One clip of one size is spoilt, three of another are perfect."""

    class SpoilsSmall(Damage):
        def reconstruct(self, pixels_BTHWC):
            return pixels_BTHWC + np.uint8(10 if pixels_BTHWC.shape[2] == 8 else 0)

    clips = [clip for clip in make_clips() if clip.pixels_THWC.shape[1] == 8 or int(clip.source_id) < 3]
    scores = judge_autoencoder(SpoilsSmall(0), clips)
    spoilt = 20 * np.log10(255 / 10)
    assert scores["clips"] == 4
    assert scores["psnr"] == pytest.approx((3 * 100 + spoilt) / 4)
