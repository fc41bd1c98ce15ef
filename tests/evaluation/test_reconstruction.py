"""The autoencoder is judged over all clips and by group; a codec with a known error gives known scores."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip
from sora_jax.evaluation import pixels, reconstruction
from sora_jax.evaluation.distances import frechet_distance
from sora_jax.evaluation.features import load_video_features
from sora_jax.evaluation.reconstruction import Networks, judge_autoencoder
from sora_jax.evaluation.resampling import resample
from sora_jax.models import perceptual
from sora_jax.models.random_features import random_features
from sora_jax.video.pixels import to_float
from tests import small

PAGE = Path(__file__).parents[2] / "docs/extending.md"


def shape(**changes):
    return dataclasses.replace(small.AUTOENCODER, channels=3, **changes)


class Lossy:
    """Its latents are the pixels in another unit; gives them back lighter by `error`, and remembers the batches."""

    def __init__(self, error, config=None):
        self.error, self.batches = error, []
        self.config = config or shape()
        self.mean_C, self.scale_C = np.full(3, 100.0), np.full(3, 50.0)

    def encode(self, pixels_BTHWC):
        self.batches.append(pixels_BTHWC.shape)
        return pixels_BTHWC.astype(np.float32)

    def decode(self, latent_BTHWC):
        made = latent_BTHWC * 50 + 100 + self.error
        return np.clip(np.round(made), 0, 255).astype(np.uint8)


def make_clips(*shapes):
    rng = np.random.default_rng(0)
    return [
        Clip(
            pixels_THWC=rng.integers(0, 200, size=(*shape, 3), dtype=np.uint8),
            fps=8.0,
            captions=(),
            source_id=str(number),
        )
        for number, shape in enumerate(shapes)
    ]


SHAPES = [(1, 12, 16)] * 20 + [(3, 12, 12)] * 2


def test_a_metric_is_added_as_the_documentation_says(monkeypatch):
    section = PAGE.read_text(encoding="utf-8").partition("## Add a metric")[2]
    made = {}
    exec(section.partition("```python\n")[2].partition("```")[0], made)
    monkeypatch.setitem(reconstruction.CLIP_METRICS, "flicker", made["flicker"])

    class Flickering(Lossy):
        def decode(self, latent_BTHWC):
            made_BTHWC = super().decode(latent_BTHWC)
            made_BTHWC[:, 1::2] += 4
            return made_BTHWC

    scores = judge_autoencoder(Flickering(0), make_clips((1, 12, 16), (3, 12, 16), (3, 12, 16)))
    assert scores.total["flicker_clips"] == 2
    assert scores.total["flicker"] == pytest.approx(4, abs=1)
    assert ["flicker" in group for group in scores.groups] == [False, True]


def test_scores_are_means_over_clips_in_total_and_in_each_group():
    clips, codec = make_clips(*SHAPES), Lossy(7)
    verdict = judge_autoencoder(codec, clips)
    pairs = [(clip.pixels_THWC, clip.pixels_THWC + 7) for clip in clips]
    ssim = [pixels.ssim(*pair) for pair in pairs]
    assert verdict.total["clips"] == 22
    assert verdict.total["psnr"] == pytest.approx(np.mean([pixels.psnr(*pair) for pair in pairs]))
    assert verdict.total["ssim"] == pytest.approx(np.mean(ssim))
    assert [(row["frames"], row["size"], row["clips"]) for row in verdict.groups] == [
        ("1", "12x16", 20),
        ("3", "12x12", 2),
    ]
    assert [row["ssim"] for row in verdict.groups] == pytest.approx([np.mean(ssim[:20]), np.mean(ssim[20:])])
    assert set(codec.batches) == {(1, 1, 12, 16, 3), (1, 3, 12, 12, 3)}, "one of a size alike"


def test_a_perfect_reconstruction_has_100_db_and_no_distance():
    total = judge_autoencoder(Lossy(0), make_clips(*SHAPES)).total
    assert total["psnr"] == 100
    assert total["ssim"] == pytest.approx(1)
    assert total["rfvd_random"] == pytest.approx(0, abs=1e-6)


def test_the_distance_of_sets_is_that_of_their_features():
    clips = make_clips(*SHAPES)[:5]
    truth_NTHWC = np.stack([clip.pixels_THWC for clip in clips])
    expected = frechet_distance(*(random_features(to_float(one)) for one in (truth_NTHWC, truth_NTHWC + 30)))
    assert expected > 1e-3
    assert judge_autoencoder(Lossy(30), clips).total["rfvd_random"] == pytest.approx(expected, rel=1e-3)
    assert "rfvd_random" not in judge_autoencoder(Lossy(30), clips[:1]).total, "one clip has no covariance"


def test_latents_are_told_in_the_units_of_the_run():
    (clip,) = make_clips((2, 8, 8))
    clip.pixels_THWC[..., 0] = 7  # a channel that says nothing
    latent_NC = clip.pixels_THWC.reshape(-1, 3).astype(float)
    total = judge_autoencoder(Lossy(0), [clip]).total
    assert total["latent_mean"] == pytest.approx(np.sqrt(np.mean(((latent_NC.mean(0) - 100) / 50) ** 2)))
    assert total["latent_std"] == pytest.approx(np.sqrt(np.mean((latent_NC.std(0) / 50) ** 2)))
    assert total["dead_channels"] == 1


def test_many_shapes_are_grouped_by_classes():
    """Features stand in that need no program for each shape."""
    video = dataclasses.replace(load_video_features(None), width=3, apply=lambda _, clip: clip.mean(axis=(1, 2, 3)))
    shapes = [(frames, 16, width) for frames in (1, 5, 6, 9) for width in (16, 17, 18, 19)] + [(5, 40, 33)]
    verdict = judge_autoencoder(Lossy(3), make_clips(*shapes), Networks(video=video))
    found = [(row["frames"], row["size"], row["clips"]) for row in verdict.groups]
    assert found == [("1", "16-31 px", 4), ("4-7", "16-31 px", 8), ("4-7", "32-63 px", 1), ("8-15", "16-31 px", 4)]


def test_clips_are_taken_one_by_one_and_few_are_held():
    codec, given = Lossy(1), 0

    def clips():
        nonlocal given
        for clip in make_clips(*[(3, 12, 12)] * 7):
            assert given == len(codec.batches), "the one before is judged"
            given += 1
            yield clip

    assert judge_autoencoder(codec, clips()).total["clips"] == 7
    assert [shape[0] for shape in codec.batches] == [1] * 7


def test_the_worst_clips_are_kept_worst_first():
    clips = make_clips(*[(5, 12, 12)] * 20)
    for number, clip in enumerate(clips):
        clip.pixels_THWC[:, : number % 10] = 255  # saturated rows cannot become lighter: a smaller error
    verdict = judge_autoencoder(Lossy(20), clips)
    scores = [min(pixels.psnr(x, np.clip(x.astype(int) + 20, 0, 255)), 100.0) for x in (c.pixels_THWC for c in clips)]
    order = np.argsort(scores, kind="stable")[:6]
    assert [one.name for one in verdict.worst] == [clips[i].source_id for i in order]
    assert [one.psnr for one in verdict.worst] == pytest.approx([scores[i] for i in order])
    assert verdict.worst[0].truth_FHWC.shape == (3, 12, 12, 3)
    np.testing.assert_array_equal(verdict.worst[0].truth_FHWC, clips[order[0]].pixels_THWC[[0, 2, 4]])
    facts = verdict.facts()
    assert facts["worst"][0] == {
        "clip": clips[order[0]].source_id,
        "frames": 5,
        "size": "12x12",
        "psnr": scores[order[0]],
    }
    assert facts["groups"] == verdict.groups


def test_networks_of_the_user_are_asked_where_clips_are_large_and_long_enough(monkeypatch, caplog):
    """Stand-ins: their numbers show which clips reached them, and that both are cut back to clips."""
    monkeypatch.setattr(perceptual, "_features", lambda weights, clip: [clip.reshape(-1, *clip.shape[2:])] * 5)
    video = dataclasses.replace(
        load_video_features(None),
        name="i3d",
        width=3,
        fewest_frames=9,
        apply=lambda weights, clip: clip.mean(axis=(1, 2, 3)),
    )
    first = {"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}
    lin = {f"lin{number}.model.1.weight": np.ones((1, 3, 1, 1), np.float32) for number in range(5)}
    networks = Networks(perceptual={**first, **lin}, video=video)
    clips = make_clips((9, 16, 12), (9, 16, 16), (9, 16, 16), (8, 16, 16))
    total = judge_autoencoder(Lossy(40), clips, networks).total
    assert total["lpips_clips"] == 3
    assert total["rfvd_i3d_clips"] == 3
    assert "rfvd_random" not in total
    expected = [
        perceptual.lpips(networks.perceptual, *(to_float(x)[None] for x in (c.pixels_THWC, c.pixels_THWC + 40))).mean()
        for c in clips[1:]
    ]
    assert total["lpips"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert total["lpips"] > 0.01
    with caplog.at_level(logging.WARNING):
        judge_autoencoder(Lossy(40), clips[:1], networks)
    assert "no LPIPS: no clip has 16 px a side" in caplog.text
    assert "no rFVD: i3d needs two clips of 9 frames or more" in caplog.text


def test_no_clip_at_all_is_told():
    with pytest.raises(UserError, match="none of the clips can be judged"):
        judge_autoencoder(Lossy(0), [])


def test_resampling_gets_as_many_numbers_as_the_latent():
    class Coarse(Lossy):
        def encode(self, pixels_BTHWC):
            return super().encode(pixels_BTHWC)[:, :, ::2, ::2]

        def decode(self, latent_BTHWC):
            return super().decode(latent_BTHWC).repeat(2, axis=2).repeat(2, axis=3)

    clips = make_clips((3, 12, 12), (1, 12, 16))
    verdict = judge_autoencoder(Coarse(0), clips)
    expected = [pixels.psnr(c.pixels_THWC, resample(c.pixels_THWC, values=c.pixels_THWC.size // 4)) for c in clips]
    assert verdict.total["psnr_resampled"] == pytest.approx(np.mean(expected))
    assert 5 < verdict.total["psnr_resampled"] < 30


def test_codes_are_counted_over_all_clips():
    class Coded(Lossy):
        """Gives each clip of a shape another code, whatever it shows."""

        def encode(self, pixels_BTHWC):
            count = pixels_BTHWC.shape[1]
            before = self.batches.count(pixels_BTHWC.shape)
            self.batches.append(pixels_BTHWC.shape)
            return np.full((1, *pixels_BTHWC.shape[1:4], 3), 0.5 * (before + count - 2))

    clips = make_clips((1, 12, 12), (1, 12, 12), (2, 12, 12), (2, 12, 12))
    rounded = judge_autoencoder(Coded(0, shape(bottleneck="fsq", codes=5)), clips)
    assert rounded.total["code_use"] == pytest.approx(3 / 5), "-0.5, 0 and 0.5, in each channel"
    assert [row["code_use"] for row in rounded.groups] == pytest.approx([2 / 5, 2 / 5])
    book = judge_autoencoder(Coded(0, shape(bottleneck="vq", codes=30)), clips)
    assert book.total["code_use"] == pytest.approx(3 / 30)
    assert "code_use" not in judge_autoencoder(Coded(0), clips).total
