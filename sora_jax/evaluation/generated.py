"""How far a set of made clips lies from a set of real ones, and how their clips move.

Both sets go the same way: the same frames, the same networks, nothing resampled until there are enough, and no clip
twice. Of a clip only numbers are kept, so sets may be larger than memory.

Letters: N clips, T H W C pixels, D features.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.data.curation.duplicates import pixel_digest
from sora_jax.evaluation import motion
from sora_jax.evaluation.distances import LIMIT_PARTS, frechet_estimate, frechet_limit, kernel_distance
from sora_jax.evaluation.features import FeatureNetwork, TextFeatures
from sora_jax.evaluation.intervals import around, earth_mover, mean_interval

# Clips whose features are taken together.
AT_ONCE = 32
# Of which a distance can be told from chance at all.
LEAST = 3
# Clips of each set from which distances are those that others publish.
USUAL = 2048
_FRAMES_OF_TEXT = 8  # of a clip that are held against its caption
SIMILARITY = "clip_similarity"
# What is measured of each clip, by the name of its row in the table of metrics; None where a clip cannot have it.
CLIP_SCORES: dict[str, Callable[[np.ndarray, float], float | None]] = {
    "temporal_flickering": lambda clip, fps: motion.temporal_flickering(clip),
    "smoothness_blend": lambda clip, fps: motion.smoothness_blend(clip),
    "dynamic_flow": motion.dynamic_flow,
    **{
        f"drift_{distance}": lambda clip, fps, distance=distance: motion.drift(clip, distance)
        for distance in motion.DRIFT_DISTANCES
    },
}

# Between what each of these lies; that of any other is 0 or more.
_RANGES = {name: (0.0, 1.0) for name in CLIP_SCORES if name != "dynamic_flow"} | {SIMILARITY: (-1.0, 1.0)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judges:
    """The networks that look at clips: of frames, of whole clips, and of captions and frames; None: none of these.

    `encode`: uint8 clip (T, H, W, 3) -> latent of about unit variance, with a frame for `stride` frames; None: no
    autoencoder looks.
    """

    image: FeatureNetwork
    video: FeatureNetwork
    text: TextFeatures | None = None
    encode: Callable[[np.ndarray], np.ndarray] | None = None
    stride: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class JudgedClip:
    """A clip of a set, uint8 (T, H, W, 3), its frames per second, and the caption that it is to follow, if any."""

    clip_THWC: np.ndarray
    fps: float
    caption: str | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SetMeasures:
    """What is kept of a set of clips, in their order.

    Attributes:
      image_ND: Features of one frame of each; `video_ND` those of each clip, None where these are too short.
      scores: By the name of a metric the value of each clip, not a number where it has none.
      sizes: How many clips there are of each (T, H, W).
      digests: Of the pixels of each clip.
    """

    image_ND: np.ndarray
    video_ND: np.ndarray | None
    scores: dict[str, np.ndarray]
    sizes: Mapping[tuple[int, ...], int]
    digests: tuple[str, ...]

    @property
    def repeats(self) -> int:
        """How many clips have the very pixels of an earlier one."""
        return len(self.digests) - len(set(self.digests))


def measure_set(
    clips: Iterable[JudgedClip], judges: Judges, done: Callable[[int], None] = lambda count: None
) -> SetMeasures:
    """Returns what is kept of clips, which are taken some at a time; `done` is called with how many were measured.

    Raises UserError where there are fewer than `LEAST`.
    """
    images, videos, sizes, digests = [], [], collections.Counter[tuple[int, ...]](), []
    scores: dict[str, list[float]] = collections.defaultdict(list)
    shown = iter(clips)
    while part := list(itertools.islice(shown, AT_ONCE)):
        pixels = [one.clip_THWC for one in part]
        # Frames at every place of clips count, and each clip once.
        frames = [clip[number % len(clip)][None] for number, clip in enumerate(pixels, start=len(digests))]
        images.append(judges.image(frames))
        if min(map(len, pixels)) >= judges.video.fewest_frames:
            videos.append(judges.video(pixels))
        for name, score in CLIP_SCORES.items():
            values = (score(one.clip_THWC, one.fps) for one in part)
            scores[name] += [np.nan if value is None else value for value in values]
        scores[SIMILARITY] += _similarity(part, judges)
        for name, values in _latent_drifts(pixels, judges).items():
            scores[name] += values
        sizes.update(clip.shape[:3] for clip in pixels)
        digests += map(pixel_digest, pixels)
        done(len(digests))
    if len(digests) < LEAST:
        raise UserError(f"{len(digests)} clips are too few to be compared: {LEAST} are the least, {USUAL} are usual")
    return SetMeasures(
        image_ND=np.concatenate(images),
        video_ND=np.concatenate(videos) if sum(map(len, videos)) == len(digests) else None,
        scores={name: np.asarray(values) for name, values in scores.items()},
        sizes=sizes,
        digests=tuple(digests),
    )


def _latent_drifts(clips: Sequence[np.ndarray], judges: Judges) -> dict[str, list[float]]:
    """Returns by distance how far the latent of each clip drifts; none where no autoencoder looks."""
    if judges.encode is None:
        return {}
    latents = [judges.encode(clip_THWC) for clip_THWC in clips]
    found = {
        f"latent_drift_{distance}": [motion.latent_drift(one, distance, stride=judges.stride) for one in latents]
        for distance in motion.DRIFT_DISTANCES
    }
    return {name: [np.nan if value is None else value for value in values] for name, values in found.items()}


def _similarity(part: Sequence[JudgedClip], judges: Judges) -> list[float]:
    """Returns the mean over frames of the cosine between each and the caption of its clip."""
    found = [np.nan] * len(part)
    told = {number: one.caption for number, one in enumerate(part) if one.caption is not None}
    if judges.text is None or not told:
        return found
    clips = [part[number].clip_THWC for number in told]
    chosen = [np.unique(np.linspace(0, len(clip) - 1, _FRAMES_OF_TEXT).round().astype(int)) for clip in clips]
    frames = [clip[numbers] for clip, numbers in zip(clips, chosen, strict=True)]
    for number, cosine_T in zip(told, judges.text.cosines(list(told.values()), frames), strict=True):
        found[number] = float(cosine_T.mean())
    return found


def compare_sets(real: SetMeasures, made: SetMeasures, judges: Judges) -> dict[str, dict[str, Any]]:
    """Returns by the name of a metric what is found of two sets.

    Each has `value`, `low` and `high` (95 %), `samples` (made clips that count) and `weights` (sha256 of the file of
    weights; None where no network looks). A Fréchet distance has its `limit` for ever more clips
    where these outnumber the features by far. A score of clips has
    `real`, the mean over real clips, and `apart`, by how much its values must be moved to become those of real clips.
    """
    found: dict[str, dict[str, Any]] = {}
    pairs = [
        ("fvd", "kvd", judges.video, real.video_ND, made.video_ND),
        ("fid", "kid", judges.image, real.image_ND, made.image_ND),
    ]
    for frechet, kernel, network, real_ND, made_ND in pairs:
        if real_ND is None or made_ND is None:
            continue
        facts = {"samples": len(made_ND), "weights": network.digest}
        found[f"{frechet}_{network.name}"] = {**around(*frechet_estimate(real_ND, made_ND), least=0.0).facts(), **facts}
        if min(len(real_ND), len(made_ND)) // LIMIT_PARTS > network.width:
            found[f"{frechet}_{network.name}"]["limit"] = frechet_limit(real_ND, made_ND).value
        found[f"{kernel}_{network.name}"] = {**around(*kernel_distance(real_ND, made_ND)).facts(), **facts}
    digest = {} if judges.text is None else {SIMILARITY: judges.text.images.digest}
    for name, made_N in made.scores.items():
        here, there = (values[np.isfinite(values)] for values in (made_N, real.scores[name]))
        if len(here) < 2:
            continue
        least, most = _RANGES.get(name, (0.0, np.inf))
        mean = mean_interval(here, least=least, most=most)
        found[name] = {**mean.facts(), "samples": len(here), "weights": digest.get(name)}
        if len(there):
            found[name] |= {"real": float(there.mean()), "apart": earth_mover(there, here)}
    return found


def warnings_of(real: SetMeasures, made: SetMeasures, judges: Judges) -> list[str]:
    """Returns in sentences what keeps the numbers of two sets from meaning what they seem to."""
    found = []
    few = min(len(real.digests), len(made.digests))
    if few < USUAL:
        found.append(
            f"{few} clips of a set are fewer than the usual {USUAL:,}: a Fréchet distance grows as they get fewer; "
            "compare it only with one of as many, or the kernel distance, which is free of that"
        )
    for name, one in (("reference", real), ("samples", made)):
        if one.repeats:
            found.append(f"{one.repeats} of the {len(one.digests)} clips of the {name} equal an earlier one")
    if real.video_ND is None or made.video_ND is None:
        found.append(
            f"no distance of videos: {judges.video.name} needs {judges.video.fewest_frames} frames, and clips have "
            f"{min(size[0] for one in (real, made) for size in one.sizes)}"
        )
    if real.sizes.keys() != made.sizes.keys():
        real_sizes, made_sizes = (", ".join(sorted(map(_size, one.sizes))) for one in (real, made))
        found.append(f"the sets differ in frames or size: {real_sizes} against {made_sizes}; that is a difference too")
    return found


@functools.cache
def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
