"""Sets of clips are told apart in the order in which they are spoiled, and nothing is counted twice."""

import dataclasses

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.core.metric_table import metric_of
from sora_jax.data.sources.shapes_world import ShapesWorld, WorldConfig
from sora_jax.evaluation import generated
from sora_jax.evaluation.features import load_image_features, load_video_features
from sora_jax.evaluation.generated import JudgedClip, Judges, compare_sets, measure_set, warnings_of

WORLD = WorldConfig(
    seed=0,
    num_clips=32,
    sides=((16, 16),),
    frames=(5,),
    image_share=0.0,
    fps=(8.0,),
    max_objects=1,
    occluder=False,
    split="heldout",
)
JUDGES = Judges(image=load_image_features(None), video=load_video_features(None))


def blurred(clip, times):
    clip = clip.astype(np.float32)
    for axis in (1, 2) * times:
        wide = np.concatenate([clip.take([0], axis), clip, clip.take([-1], axis)], axis)
        size = clip.shape[axis]
        clip = sum(wide.take(range(start, start + size), axis) for start in range(3)) / 3
    return clip.astype(np.uint8)


def shuffled(clip):
    return clip[[2, 0, 4, 1, 3]]


def shown(clips):
    return [JudgedClip(clip_THWC=clip, fps=8.0, caption=None) for clip in clips]


@pytest.fixture(scope="module")
def sets():
    """Returns what is measured of drawn clips, of their mirror images, as likely, and of these spoiled."""
    clips = [clip.pixels_THWC for clip in map(ShapesWorld(WORLD).__getitem__, range(WORLD.num_clips))]
    real, made = clips, [clip[:, :, ::-1] for clip in clips]
    spoiled = {
        "real": real,
        "truth": made,
        "blurred": [blurred(clip, 3) for clip in made],
        "more blurred": [blurred(clip, 8) for clip in made],
        "shuffled": [shuffled(clip) for clip in made],
    }
    with pytest.MonkeyPatch.context() as patch:  # tests/evaluation/test_motion.py has the flow, which takes longest
        patch.delitem(generated.CLIP_SCORES, "dynamic_flow")
        return {name: measure_set(shown(clips), JUDGES) for name, clips in spoiled.items()}


@pytest.fixture(scope="module")
def found(sets):
    return {name: compare_sets(sets["real"], one, JUDGES) for name, one in sets.items() if name != "real"}


@pytest.mark.parametrize("name", ["fvd_random", "kvd_random", "fid_random", "kid_random"])
def test_distances_grow_with_blur(found, name):
    values = [found[kind][name]["value"] for kind in ("truth", "blurred", "more blurred")]
    assert values[0] < values[1] < values[2]
    assert {one[name]["samples"] for one in found.values()} == {32}


@pytest.mark.parametrize("name", ["temporal_flickering", "smoothness_blend", "drift_2"])
def test_scores_of_motion_leave_those_of_real_clips_with_blur(found, name):
    values = [found[kind][name]["apart"] for kind in ("truth", "blurred", "more blurred")]
    assert values == sorted(values)


def test_shuffled_frames_are_seen_by_what_looks_at_several(found):
    truth, other = found["truth"], found["shuffled"]
    more = {name: other[name]["value"] / truth[name]["value"] for name in ("fvd_random", "fid_random")}
    assert more["fvd_random"] > 1.2
    # The frame of a clip that counts is another one then.
    assert abs(more["fid_random"] - 1) < (more["fvd_random"] - 1) / 2
    assert other["kvd_random"]["value"] > truth["kvd_random"]["value"]
    for name in ("temporal_flickering", "smoothness_blend"):
        assert other[name]["apart"] > 2 * truth[name]["apart"]


def test_every_score_has_its_row_in_the_table(found):
    names = {name for one in found.values() for name in one}
    assert {name for name in names if metric_of(name) is None} == set()
    assert {"fvd_random", "fid_random", "smoothness_blend", "drift_2"} <= names
    assert "drift_10" not in names, "clips of 5 frames have none"
    assert [metric_of(name) for name in generated.CLIP_SCORES].count(None) == 0


def test_a_frame_of_a_clip_is_one_sample(sets):
    assert len(sets["real"].image_ND) == len(sets["real"].video_ND) == len(sets["real"].digests) == 32


class Plain:
    """Looks at the mean colour of a clip, or of each frame."""

    name, digest, width, fewest_frames = "plain", "none", 3, 9

    def __call__(self, clips):
        return np.stack([clip.mean(axis=(0, 1, 2)) for clip in clips])


PLAIN = dataclasses.replace(JUDGES, image=Plain(), video=Plain())


def test_small_sets_repeats_and_other_sizes_are_told():
    clip = np.random.default_rng(0).integers(0, 200, size=(1, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="2 clips are too few to be compared: 3 are the least"):
        measure_set(shown([clip, clip]), PLAIN)
    real, made = (measure_set(shown(one), PLAIN) for one in ([clip, clip + 1, clip + 2], [clip[:, 1:], clip, clip]))
    assert (real.repeats, made.repeats) == (0, 1)
    assert warnings_of(real, made, PLAIN)[1:] == [
        "1 of the 3 clips of the samples equal an earlier one",
        "no distance of videos: plain needs 9 frames, and clips have 1",
        "the sets differ in frames or size: 1x16x16 against 1x15x16, 1x16x16; that is a difference too",
    ]
    assert warnings_of(real, made, PLAIN)[0].startswith("3 clips of a set are fewer than the usual 2,048")
    assert compare_sets(real, made, PLAIN).keys() == {"fid_plain", "kid_plain"}


def test_no_interval_leaves_the_range_of_its_score(monkeypatch):
    monkeypatch.delitem(generated.CLIP_SCORES, "dynamic_flow")
    still, fading = (np.zeros((6, 8, 8, 3), np.uint8) for _ in range(2))
    fading[1::2] = 200
    fading[3:] += 50
    judges = dataclasses.replace(PLAIN, text=Captions())
    clips = [(still, "1"), (still, "1"), (fading, "0.8")]
    made = measure_set([JudgedClip(clip_THWC=one, fps=8.0, caption=caption) for one, caption in clips], judges)
    scores = compare_sets(made, made, judges)
    highest = ("temporal_flickering", "smoothness_blend", "clip_similarity")
    assert [scores[name]["high"] for name in highest] == [1.0] * 3
    assert [scores[f"drift_{distance}"]["low"] for distance in (2, 5)] == [0.0] * 2
    assert all(one["low"] < one["value"] < one["high"] for name, one in scores.items() if "plain" not in name)


def test_latents_drift_where_an_autoencoder_looks():
    clips = [np.random.default_rng(seed).integers(0, 200, (5, 4, 4, 3), np.uint8) for seed in range(3)]
    looking = dataclasses.replace(PLAIN, encode=lambda clip: clip[::4] / np.float32(100), stride=4)
    real, made = (measure_set(shown([clip + add for clip in clips]), looking) for add in (0, 1))
    score = compare_sets(real, made, looking)["latent_drift_5"]
    assert score["value"] == pytest.approx(score["real"])
    assert (score["samples"], score["weights"]) == (3, None)
    assert metric_of("latent_drift_5") is not None
    assert not [name for name in compare_sets(real, made, looking) if name in ("latent_drift_2", "latent_drift_10")]
    assert not [name for name in measure_set(shown(clips), PLAIN).scores if name.startswith("latent")]


def test_the_limit_is_told_where_clips_outnumber_features():
    clips = np.random.default_rng(0).integers(0, 200, size=(20, 1, 2, 2, 3), dtype=np.uint8)
    measured = measure_set(shown(clips), PLAIN)
    assert "limit" in compare_sets(measured, measured, PLAIN)["fid_plain"]


class Captions:
    """Holds captions against frames: the cosine is the number in the caption."""

    class images:
        digest = "of the weights"

    def cosines(self, texts, clips):
        self.frames = [len(clip) for clip in clips]
        return [np.full(len(clip), float(text)) for text, clip in zip(texts, clips, strict=True)]


def test_captions_are_held_against_frames_where_there_are_any():
    clip, captions = np.zeros((11, 8, 8, 3), np.uint8), Captions()
    judges = dataclasses.replace(PLAIN, text=captions)
    made = [JudgedClip(clip_THWC=clip, fps=8.0, caption=caption) for caption in ("0.1", None, "0.3")]
    measured = measure_set(made, judges)
    assert captions.frames == [8, 8], "of a long clip eight"
    assert measured.scores["clip_similarity"] == pytest.approx([0.1, np.nan, 0.3], nan_ok=True)
    found = compare_sets(measured, measured, judges)["clip_similarity"]
    assert (found["value"], found["samples"], found["weights"]) == (pytest.approx(0.2), 2, "of the weights")
