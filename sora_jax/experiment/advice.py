"""What to change first in a run, in sentences, from what it has left in its workdir."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from sora_jax.core.errors import CommandError
from sora_jax.data.shards.files import index_paths
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment.caption_words import CaptionWords
from sora_jax.experiment.kinds import training
from sora_jax.experiment.prompt_advice import prompt_advice
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.stage_settings import AUTOENCODER, TEXT_TO_VIDEO
from sora_jax.train.metrics import read_metrics
from sora_jax.train.workdir import Workdir

# Share of videos that end where reading ends, from which on files are taken to be longer.
_LONG = 0.5
# Lines of metrics from which on a trend is looked for, and the least fall of the loss over the last fifth of them.
_LEAST_LINES, _LEAST_FALL = 20, 0.03
# Rise of the held-out loss over its lowest, as a share, from which on a stage overfits.
_LEAST_RISE = 0.02


def advice(workdir: Workdir) -> list[str]:
    """Returns what to change in the config and why, what matters most first; nothing where nothing is known."""
    try:
        settings = read_settings(workdir.config())
        evaluation = workdir.read_json("evaluation.json") if (workdir.path / "evaluation.json").exists() else {}
        found = [*_of_frames(workdir, settings), *_of_autoencoder(settings, evaluation)]
        found += _of_windows(workdir, settings)
        found += _of_loss(workdir, settings)
        prompts = prompt_advice(CaptionWords(workdir, settings), settings.sampling.prompts or ())
        return [*found, *(f"sampling.prompts: {said}" for said in prompts)]
    except (CommandError, OSError, KeyError, TypeError, ValueError) as error:
        logging.warning("there is no advice on this run: %s", error)
        return []


def _of_frames(workdir: Workdir, settings: Settings) -> Iterator[str]:
    for name, data in settings.collections.items():
        windows = data.curation.windows_per_file > 1 or data.curation.shots
        if data.source == "shapes" or windows or not index_paths(workdir.prepared(name)):
            continue
        prepared = PreparedSet(workdir.prepared(name))
        latent_N, fps_N = prepared.grid_N3[:, 0], prepared.fps_N
        time, step = settings.stride[0], settings.token_stride[0]
        first = step - time + 1
        longest = first + max(0, (data.max_frames - first) // step) * step
        whole = 1 + (longest - 1) // time
        videos_N = latent_N > 1
        ends_N = videos_N & (latent_N == whole)
        if (there_N := prepared.file_frames_N) is not None:
            ends_N &= (there_N == 0) | (there_N > data.max_frames)  # or nothing follows
        share = _used_share(prepared, stride=time)
        if whole > 1 and ends_N.sum() >= _LONG * max(videos_N.sum(), 1):
            key = "data" if name not in settings.more_data else f"more_data.{name}"
            seconds = longest / float(np.median(fps_N[ends_N]))
            yield (
                f"{ends_N.sum()} of {videos_N.sum()} videos are read up to {key}.max_frames {data.max_frames}, their "
                f"first {seconds:.2g} s, and what follows in their files is not used{share}: take windows over the "
                f"whole of them, --config.{key}.curation.windows_per_file=8"
            )


def _used_share(prepared: PreparedSet, *, stride: int) -> str:
    """Returns words on the share of the frames in the files of videos that was encoded; none where it is not known."""
    there_N, used_N = prepared.file_frames_N, 1 + (prepared.grid_N3[:, 0] - 1) * stride
    if there_N is None:
        return ""
    known_N = (there_N > 0) & (used_N > 1)
    used, there = int(used_N[known_N].sum()), int(there_N[known_N].sum())
    return (
        f" ({used} of {there} frames in the files of videos, {100 * used / there:.2g} %, are)" if used < there else ""
    )


def _of_autoencoder(settings: Settings, evaluation: dict[str, Any]) -> Iterator[str]:
    scores = evaluation.get("autoencoder", {})
    psnr, plain = scores.get("psnr"), scores.get("psnr_resampled")
    if psnr is None or plain is None or psnr >= plain:
        return
    steps = {name: training(settings)[name].of(settings, name).steps for name in settings.stages_of(AUTOENCODER)}
    longest = max(steps, key=lambda name: steps[name], default=None)
    remedy = "take a better one, or train one here" if longest is None else f"train it longer, stages.{longest}.steps"
    yield (
        f"the autoencoder gives clips back at {psnr:.1f} dB, and scaling them down to as few numbers and up again at "
        f"{plain:.1f} dB: no sample can be better than it gives back, so {remedy}"
    )


def _of_windows(workdir: Workdir, settings: Settings) -> Iterator[str]:
    stages = settings.stages_of(AUTOENCODER)
    folders = [workdir.prepared(name) for name in settings.collections if index_paths(workdir.prepared(name))]
    latent = max((int(PreparedSet(folder).grid_N3[:, 0].max()) for folder in folders), default=1)
    encoded = 1 + (latent - 1) * settings.stride[0]
    seen = max((settings.stages[name].most_frames for name in stages), default=encoded)
    if encoded > seen and settings.stages_of(TEXT_TO_VIDEO):  # else nothing decodes
        yield (
            f"clips of up to {encoded} frames were encoded, and the autoencoder was trained on windows of at most "
            f"{seen}: what is further from the first frame may come back worse, as under a grid: give "
            f"stages.{stages[-1]}.crops.buckets windows of {encoded} frames"
        )


def _of_loss(workdir: Workdir, settings: Settings) -> Iterator[str]:
    done = workdir.facts()["stages"]
    lines = read_metrics(workdir.path)
    for name in settings.stages_of(TEXT_TO_VIDEO)[-1:]:
        if said := _overfitting(name, [line for line in lines if line["stage"] == name]):
            yield said
            continue
        losses = [line["loss"] for line in lines if line["stage"] == name and isinstance(line.get("loss"), float)]
        if name in done and (fall := _fall(losses)) is not None:
            yield (
                f"the loss of {name} still fell by {fall:.0%} in its last fifth: more steps would help, "
                f"stages.{name}.steps (docs/checkpoints.md says how another run goes on from this one)"
            )


def _overfitting(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns a sentence where the held-out loss of a stage rises and that of its own clips falls; "" where not.

    The held-out clips and their noise stay the same, so its rise is one of the weights.
    """
    heldout = [(line["step"], line["heldout_loss"]) for line in lines if isinstance(line.get("heldout_loss"), float)]
    own = [(line["step"], line["loss"]) for line in lines if isinstance(line.get("loss"), float)]
    if len(heldout) < 3 or len(own) < _LEAST_LINES:
        return ""
    (at, best), (_, last) = min(heldout, key=lambda one: one[1]), heldout[-1]
    then = [loss for step, loss in own if step <= at][-len(own) // 5 :]
    before, now = float(np.mean(then or [math.inf])), float(np.mean([loss for _, loss in own[-len(own) // 5 :]]))
    if last < (1 + _LEAST_RISE) * best or not now < before < math.inf:
        return ""
    return (
        f"{name} overfits: its loss on held-out clips was lowest at step {at}, {best:.3g}, and is {last:.3g} at the "
        f"end, while that on its own clips fell from {before:.3g} to {now:.3g}: train on more clips, or fewer steps, "
        f"stages.{name}.steps"
    )


def _fall(losses: Sequence[float]) -> float | None:
    """Returns the share by which a loss fell over its last fifth; None where that is little, or within its noise."""
    fifth = len(losses) // 5
    if len(losses) < _LEAST_LINES:
        return None
    before, last = np.array(losses[-2 * fifth : -fifth]), np.array(losses[-fifth:])
    fall = before.mean() - last.mean()
    noise = math.sqrt((before.var() + last.var()) / fifth)
    return float(fall / before.mean()) if fall > max(_LEAST_FALL * before.mean(), 2 * noise) else None
