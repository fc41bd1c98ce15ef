"""The metrics of a run: does the generator follow held-out prompts, how well does the autoencoder reconstruct."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sora_jax.core.tree import Params
from sora_jax.data.clips import Clip
from sora_jax.data.shapes_prompts import PromptCase
from sora_jax.evaluation import pixels, shapes_oracle
from sora_jax.generate.canvas import Canvas
from sora_jax.generate.run import Sampler
from sora_jax.models.codec import Codec
from sora_jax.video.shapes import Size

# Reconstructions in one decoding: bounds the memory.
_CLIPS_AT_ONCE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """Scores, each a share in [0, 1] but `prompts`, and what they were read from."""

    scores: dict[str, float]
    prompts: list[str]
    clips: list[np.ndarray]


def judge_prompts(
    sampler: Sampler, params: Params, cases: Sequence[PromptCase], *, grid: Size, fps: float, seed: int
) -> Judged:
    """Returns the oracle's scores on what is made from the prompts; each has its own noise, from `seed` on."""
    canvases = [Canvas(prompt=case.prompt, grid=grid, fps=fps, seed=seed + number) for number, case in enumerate(cases)]
    clips = sampler(params, canvases)
    return Judged(scores=shapes_oracle.score(cases, clips), prompts=[case.prompt for case in cases], clips=clips)


def judge_autoencoder(codec: Codec, clips: list[Clip]) -> dict[str, float]:
    """Returns mean PSNR (dB) and SSIM over clips of legal sizes, and their number."""
    psnr, ssim = [], []
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for clip in clips:
        by_shape.setdefault(clip.pixels_THWC.shape, []).append(clip.pixels_THWC)
    for group in by_shape.values():
        for start in range(0, len(group), _CLIPS_AT_ONCE):
            truth_BTHWC = np.stack(group[start : start + _CLIPS_AT_ONCE])
            for truth_THWC, made_THWC in zip(truth_BTHWC, codec.reconstruct(truth_BTHWC), strict=True):
                # Equal clips have no finite PSNR; 100 dB stands for them.
                psnr.append(min(pixels.psnr(truth_THWC, made_THWC), 100.0))
                ssim.append(pixels.ssim(truth_THWC, made_THWC))
    return {"clips": len(psnr), "psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim))}
