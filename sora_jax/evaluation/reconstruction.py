"""How well an autoencoder gives clips back: over all of them, by their size and duration, and where it does worst.

Letters: B clips of one shape, T H W frames, rows, columns of pixels or latents, C channels, F frames shown, N frames of
all clips, D features.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from sora_jax.core.errors import UserError
from sora_jax.data.clips import Clip
from sora_jax.evaluation import pixels
from sora_jax.evaluation.distances import frechet_distance
from sora_jax.evaluation.features import FeatureNetwork, load_video_features
from sora_jax.evaluation.resampling import resample
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.codec import Codec
from sora_jax.models.perceptual import NetworkWeights, lpips, smallest_side
from sora_jax.video.latents import LatentStatistics, normalise
from sora_jax.video.pixels import to_float

# Px of the frames that LPIPS looks at together; its first layers keep 64 numbers for each.
_LPIPS_PIXELS_AT_ONCE = 2**19
_MOST_SHAPES = 16  # rows of a table; more shapes are grouped by classes
_WORST, _FRAMES_SHOWN = 6, 3
# A channel that varies less than this, as a share of the mean deviation, carries nothing.
_DEAD = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """What measures more than pixels. Without weights there is no LPIPS, and rFVD compares random features.

    Attributes:
      perceptual: As `models.perceptual.load_perceptual` gives them.
      video: Whose features the rFVD compares.
    """

    perceptual: NetworkWeights | None = None
    video: FeatureNetwork = dataclasses.field(default_factory=lambda: load_video_features(None))

    @property
    def rfvd(self) -> str:
        """Returns the name of the distance, which says whose features it compares."""
        return f"rfvd_{self.video.name}"

    def lpips(self, truth_BTHWC: np.ndarray, made_BTHWC: np.ndarray) -> np.ndarray | None:
        """Returns the mean over the frames of each uint8 clip, (B,); None where they are too small or weights lack."""
        if self.perceptual is None or min(truth_BTHWC.shape[2:4]) < smallest_side(self.perceptual):
            return None
        return np.asarray(_lpips(self.perceptual, truth_BTHWC, made_BTHWC))

    def features(self, clip_BTHWC: np.ndarray) -> np.ndarray | None:
        """Returns (B, D) of uint8 clips; None where they are too short."""
        return self.video(list(clip_BTHWC)) if clip_BTHWC.shape[1] >= self.video.fewest_frames else None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reconstructed:
    """A clip and what an autoencoder made of it, both uint8 (T, H, W, 3).

    Attributes:
      truth_THWC: The clip.
      made_THWC: Its reconstruction.
      values: Numbers in its latent.
      networks: What may measure more than pixels.
    """

    truth_THWC: np.ndarray
    made_THWC: np.ndarray
    values: int
    networks: Networks


def _psnr(truth_THWC: np.ndarray, made_THWC: np.ndarray) -> float:
    """Returns dB; equal clips have no finite PSNR, and 100 dB stand for them."""
    return min(pixels.psnr(truth_THWC, made_THWC), 100.0)


def _mean_lpips(one: Reconstructed) -> float | None:
    lpips_B = one.networks.lpips(one.truth_THWC[None], one.made_THWC[None])
    return None if lpips_B is None else float(lpips_B[0])


# What is measured of each clip and averaged over clips, in the order of tables; None where a clip cannot have it.
CLIP_METRICS: dict[str, Callable[[Reconstructed], float | None]] = {
    "psnr": lambda one: _psnr(one.truth_THWC, one.made_THWC),
    "psnr_resampled": lambda one: _psnr(one.truth_THWC, resample(one.truth_THWC, values=one.values)),
    "ssim": lambda one: pixels.ssim(one.truth_THWC, one.made_THWC),
    "lpips": _mean_lpips,
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Damaged:
    """A clip beside its reconstruction: some frames of both, uint8 (F, H, W, 3), and the PSNR of all in dB."""

    name: str
    shape: tuple[int, int, int]
    psnr: float
    truth_FHWC: np.ndarray
    made_FHWC: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReconstructionScores:
    """Scores of all clips, those of each group of them, and the clips with the lowest PSNR, worst first.

    `psnr` is in dB, and `psnr_resampled` that of scaling the clips down to as many numbers as the latent has, and up
    again: what an autoencoder has to beat. `ssim` is at most 1; `lpips` and the rFVD are 0 for equal clips. Latents are
    measured by channel, in units of the run's own statistics: `latent_mean` (0 on the clips that these were taken from)
    and `latent_std` (1) are root mean squares over channels; `dead_channels` is a count. `code_use` is the share of the
    codes of fsq and vq that occur. A score that some clips could not get comes with the number of those that did, as
    `lpips_clips`. A group names its `frames` and `size`.
    """

    total: dict[str, float]
    groups: list[dict[str, Any]]
    worst: list[Damaged]

    def facts(self) -> dict[str, Any]:
        """Returns everything but the pictures, fit for JSON."""
        worst = [
            {"clip": one.name, "frames": one.shape[0], "size": _size(one.shape), "psnr": one.psnr} for one in self.worst
        ]
        return {**self.total, "groups": self.groups, "worst": worst}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Measured:
    shape: tuple[int, int, int]
    scores: dict[str, float]
    features_2D: np.ndarray | None  # of the clip and of its reconstruction
    latents: LatentStatistics
    codes: set[bytes]


def judge_autoencoder(codec: Codec, clips: Iterable[Clip], networks: Networks | None = None) -> ReconstructionScores:
    """Returns how clips of legal sizes come through `codec`; they are taken one by one and not kept.

    Raises UserError where there are none.
    """
    networks = networks or Networks()
    measured: list[_Measured] = []
    worst: list[Damaged] = []
    for clip in clips:
        one, shown = _judge(codec, clip, networks)
        measured.append(one)
        worst = sorted([*worst, shown], key=lambda shown: shown.psnr)[:_WORST]
    if not measured:
        raise UserError("none of the clips can be judged: see the reasons above, or give others with --data=DIR")
    total = _summary(codec, measured, networks.rfvd)
    if networks.perceptual is not None and "lpips" not in total:
        logging.warning("no LPIPS: no clip has %d px a side", smallest_side(networks.perceptual))
    if networks.rfvd not in total and networks.video.fewest_frames > 1:
        video = networks.video
        logging.warning("no rFVD: %s needs two clips of %d frames or more", video.name, video.fewest_frames)
    exact = len({one.shape for one in measured}) <= _MOST_SHAPES
    groups: dict[tuple[int, ...], list[_Measured]] = {}
    for one in measured:
        groups.setdefault(one.shape if exact else _class_of(one.shape), []).append(one)
    return ReconstructionScores(
        total=total,
        groups=[{**_label(key), **_summary(codec, groups[key], networks.rfvd)} for key in sorted(groups)],
        worst=worst,
    )


def _judge(codec: Codec, clip: Clip, networks: Networks) -> tuple[_Measured, Damaged]:
    """Returns what is found of one clip: a batch of one, since a codec is compiled for each size of a batch."""
    truth_THWC = clip.pixels_THWC
    latent_BTHWC = codec.encode(truth_THWC[None])
    (made_THWC,) = codec.decode(normalise(latent_BTHWC, codec.mean_C, codec.scale_C))
    frames, height, width = truth_THWC.shape[:3]
    one = Reconstructed(truth_THWC=truth_THWC, made_THWC=made_THWC, values=latent_BTHWC.size, networks=networks)
    scores = {name: value for name, measure in CLIP_METRICS.items() if (value := measure(one)) is not None}
    features = [networks.features(one_THWC[None]) for one_THWC in (truth_THWC, made_THWC)]
    measured = _Measured(
        shape=(frames, height, width),
        scores=scores,
        features_2D=None if features[0] is None or features[1] is None else np.concatenate([features[0], features[1]]),
        latents=LatentStatistics.of(latent_BTHWC[0]),
        codes=_codes(codec.config, latent_BTHWC[0]),
    )
    chosen_F = np.unique(np.linspace(0, frames - 1, _FRAMES_SHOWN).astype(int))
    shown = Damaged(
        name=clip.source_id,
        shape=measured.shape,
        psnr=scores["psnr"],
        truth_FHWC=truth_THWC[chosen_F],
        made_FHWC=made_THWC[chosen_F],
    )
    return measured, shown


def _summary(codec: Codec, measured: Sequence[_Measured], rfvd: str) -> dict[str, float]:
    summary: dict[str, float] = {"clips": len(measured)}

    def add(name: str, value: float, count: int) -> None:
        summary[name] = value
        if count < len(measured):
            summary[f"{name}_clips"] = count

    for name in CLIP_METRICS:
        if values := [one.scores[name] for one in measured if name in one.scores]:
            add(name, float(np.mean(values)), len(values))
    features = [one.features_2D for one in measured if one.features_2D is not None]
    if len(features) >= 2:  # of one sample there is no covariance
        add(rfvd, frechet_distance(*np.stack(features, axis=1)), len(features))
    latents = functools.reduce(LatentStatistics.merge, (one.latents for one in measured))
    deviation_C = np.sqrt(latents.variance_C)
    summary["latent_mean"] = float(np.sqrt(np.mean(((latents.mean_C - codec.mean_C) / codec.scale_C) ** 2)))
    summary["latent_std"] = float(np.sqrt(np.mean(latents.variance_C / codec.scale_C**2)))
    summary["dead_channels"] = int(np.sum(deviation_C <= _DEAD * deviation_C.mean()))
    config = codec.config
    if config.codes is not None:
        possible = config.codes * (config.channels if config.bottleneck == "fsq" else 1)
        summary["code_use"] = len(set[bytes]().union(*(one.codes for one in measured))) / possible
    return summary


def _codes(config: AutoencoderConfig, latent_THWC: np.ndarray) -> set[bytes]:
    """Returns what tells the codes in a latent apart: (channel, value) pairs of fsq, vectors of vq; none of kl."""
    if config.bottleneck == "kl":
        return set()
    values_MC = latent_THWC.reshape(-1, config.channels).round(4)
    if config.bottleneck == "vq":
        return {code.tobytes() for code in np.unique(values_MC, axis=0)}
    return {
        bytes([channel]) + value.tobytes()
        for channel in range(config.channels)
        for value in np.unique(values_MC[:, channel])
    }


def _class_of(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Returns the powers of two at or below the frames and the px of the shorter side."""
    frames, side = shape[0], min(shape[1:])
    return 2 ** (frames.bit_length() - 1), 2 ** (side.bit_length() - 1)


def _label(key: tuple[int, ...]) -> dict[str, str]:
    if len(key) == 3:
        return {"frames": str(key[0]), "size": _size(key)}
    frames, side = key
    return {"frames": f"{frames}-{2 * frames - 1}" if frames > 1 else "1", "size": f"{side}-{2 * side - 1} px"}


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[2]}"


@jax.jit
def _lpips(weights: NetworkWeights, truth_BTHWC: jax.Array, made_BTHWC: jax.Array) -> jax.Array:
    batch, frames, height, width, _ = truth_BTHWC.shape
    both = [clip.reshape(-1, 1, 1, height, width, 3) for clip in (truth_BTHWC, made_BTHWC)]
    at_once = max(1, _LPIPS_PIXELS_AT_ONCE // (height * width))
    with jax.default_matmul_precision("highest"):
        distance_N11 = jax.lax.map(
            lambda pair: lpips(weights, to_float(pair[0]), to_float(pair[1])), tuple(both), batch_size=at_once
        )
    return distance_N11.reshape(batch, frames).mean(axis=1)
