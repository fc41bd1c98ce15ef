"""A set of made clips against a set of real ones: which clips these are, and what is written of them.

One clip is made for the caption of each real clip, of its frames, size and rate. What is made is kept in the workdir as
it is made, without loss, so that an evaluation that was interrupted goes on.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from sora_jax.core.errors import UserError
from sora_jax.core.metric_table import BEST, metric_of, scores_in
from sora_jax.evaluation import show
from sora_jax.evaluation.features import load_image_features, load_text_features, load_video_features
from sora_jax.evaluation.generated import (
    LEAST,
    USUAL,
    JudgedClip,
    Judges,
    SetMeasures,
    compare_sets,
    measure_set,
    warnings_of,
)
from sora_jax.experiment import sample_log
from sora_jax.experiment.judged_clips import HELDOUT, SEED, Case, GivenClips, Maker, RealClips
from sora_jax.experiment.loading import limits_of
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.schema import Settings
from sora_jax.train.progress import Progress

# The part of an evaluation.
DISTRIBUTION = "distribution"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetComparison:
    """What is to be compared.

    Attributes:
      reference: A folder of real clips, or `HELDOUT`.
      samples: Clips of each set at most.
      samples_from: A folder whose clips are judged instead of the run's own; None: the run makes them.
      image_features: File of weights; None: random features. So for `video_features`.
      text_features: Folder or file of CLIP; None: captions are not held against frames.
    """

    reference: str = HELDOUT
    samples: int = USUAL
    samples_from: str | None = None
    image_features: str | None = None
    video_features: str | None = None
    text_features: str | None = None

    def __post_init__(self):
        if self.samples < LEAST:
            raise UserError(f"--samples={self.samples} cannot be compared: {LEAST} are the least, {USUAL} are usual")
        for name, path in (("reference", self.reference), ("samples_from", self.samples_from)):
            if path not in (None, HELDOUT) and not Path(path).is_dir():
                raise UserError(f"--{name}={path} is not a folder: give one with videos or images")
        if self.samples_from == HELDOUT:
            raise UserError(f"--samples_from={HELDOUT} are real clips: give the folder of a model's samples")

    def judges(self) -> Judges:
        """Returns the networks; raises UserError for a file that holds none."""
        return Judges(
            image=load_image_features(self.image_features),
            video=load_video_features(self.video_features),
            text=load_text_features(self.text_features) if self.text_features else None,
        )


def comparison_of(part: str, *, video_features: str | None, **given: Any) -> SetComparison | None:
    """Returns what is to be compared, of the fields of `SetComparison` that are not None; None for another part.

    Raises UserError where another part is given what is for this one.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if part == DISTRIBUTION:
        return SetComparison(video_features=video_features, **chosen)
    if chosen:
        raise UserError(f"--{next(iter(chosen))} is for the distribution alone: pass --part={DISTRIBUTION}, not {part}")
    return None


def judge_distribution(
    models: RunModels,
    settings: Settings,
    asked: SetComparison,
    work: contextlib.AbstractContextManager[None] | None = None,
) -> dict[str, Any]:
    """Returns all of evaluation.json after putting there, as `distribution`, how made clips compare with real ones.

    `settings` are those of the run, or `evaluation.changed`. `work` is entered once real clips have been measured.

    Raises UserError for a run that holds no clips out, sets of fewer than two clips, and captions that are missing.
    """
    judges = asked.judges()
    if settings.shown is not None and asked.samples_from is None:
        raise UserError("a model that is shown frames makes nothing of a caption alone: give --samples_from=DIR")
    count, folder = asked.samples, asked.samples_from
    # What is missing is said before anything is measured.
    maker = Maker(models, settings) if folder is None else None
    if maker is not None:
        judges = dataclasses.replace(judges, encode=models.encode, stride=settings.stride[0])
    given = None if folder is None else GivenClips(settings, folder, count)
    real_clips = RealClips(models.workdir, settings, asked.reference, count, captioned=given is None)
    real = _measured("real clips", real_clips.read(), judges, total=min(count, len(real_clips)))
    real_clips.tell()
    facts: dict[str, Any] = {"reference": asked.reference, "held_out": real_clips.held_out}
    facts["clips"] = len(real_clips.cases)
    with work or contextlib.nullcontext():
        if maker is not None:
            facts |= maker.facts | {"seeds": [SEED, SEED + len(real_clips.cases) - 1]}
            made = _measured("samples", maker.read(real_clips.cases), judges, total=len(real_clips.cases))
        else:
            assert given is not None
            made = _measured("samples", given.read(facts["clips"]), judges, total=min(facts["clips"], len(given)))
            facts |= {"samples_from": folder, "samples_left_out": given.left_out}
    warnings = warnings_of(real, made, judges)
    for warning in warnings:
        logging.warning("%s", warning)
    facts |= {
        "frames": limits_of(settings).frames,
        "stride": 1,
        "fps": settings.data.fps or "of the clips",
        "sizes": [f"{'x'.join(map(str, size))}: {count}" for size, count in sorted(real.sizes.items())],
        "left_out": real_clips.left_out,
        "repeats": made.repeats,
        "warnings": warnings,
    }
    result = _write(models, {**facts, **compare_sets(real, made, judges)})
    if maker is not None:
        _show_pairs(models, real_clips.first, maker, real_clips.cases)
    return result


def score_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row for each score of `distribution`, as tables show it."""
    rows = []
    for name, score in scores_in(facts):
        row = metric_of(name)
        numbers = {key: value for key, value in score.items() if key != "weights"}
        rows.append({"score": name, **numbers, "best": "" if row is None else BEST[row.better]})
    return rows


def _measured(name: str, clips: Iterator[JudgedClip], judges: Judges, *, total: int) -> SetMeasures:
    with contextlib.closing(Progress(f"{name} measured", total=total, unit="clips")) as progress:
        return measure_set(clips, judges, done=progress.update)


def _write(models: RunModels, facts: dict[str, Any]) -> dict[str, Any]:
    workdir = models.workdir
    known = workdir.read_json("evaluation.json") if (workdir.path / "evaluation.json").exists() else {}
    result = {**known, DISTRIBUTION: facts}
    workdir.write_json("evaluation.json", result)
    print(show.table(score_rows(facts)), flush=True)
    return result


def _show_pairs(models: RunModels, real: Sequence[np.ndarray], maker: Maker, cases: Sequence[Case]) -> None:
    """Writes a sheet of some real clips, each beside what was made of its caption."""
    shown = cases[: len(real)]
    made = [np.load(maker.path(number, case), allow_pickle=False) for number, case in enumerate(shown)]
    pairs = [np.concatenate([left, right], axis=2) for left, right in zip(real, made, strict=True)]
    folder = models.workdir.path / "samples" / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    captions = [case.caption for case in shown]
    sample_log.show_sheet(folder, "distribution", pairs, captions, fps=cases[0].fps)
