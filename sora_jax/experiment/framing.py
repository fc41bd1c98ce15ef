"""The runs of a study of framing, samples of both at the same prompts and seeds, and what these say.

P prompts, S samples of each.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.core.files import beside, write_atomically
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.shapes_prompts import PromptCase, heldout_prompts
from sora_jax.data.sources.shapes_world import ShapesWorld
from sora_jax.evaluation.framing import Framing, calibrate, read_framing
from sora_jax.evaluation.paired import gap_of, mean_of
from sora_jax.experiment.children import Child, Study, shared_autoencoder
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.generate.canvas import Canvas
from sora_jax.reports.framing_page import FRAMING_PAGE, write_framing_page
from sora_jax.video import shapes

FRAMING_FILE = "framing.json"
# Of the noise of these samples; evaluation and training use others.
_FIRST_SEED = 2_000
_CALIBRATED_ON = 150  # drawn clips, each whole and cut to its square
_SHOWN = 12  # prompts whose first samples are on the page, the first ones
_CUTS = {"native": False, "square": True}  # values of data.square_crop by the name of the run


def framing_runs(study: Study) -> tuple[list[Child], list[Child]]:
    """Returns (the run that trains the autoencoder of both, none where it is given; the two: `native` and `square`).

    Raises UserError where the config draws no clips whose subject a square crop could cut, or makes no videos of them
    from prompts alone.
    """
    settings = study.settings()
    if settings.data.source != "shapes" or settings.shapes.worlds is not None:
        raise UserError(
            f"data.source is {settings.data.source!r} and shapes.worlds {settings.shapes.worlds}: where the subject of "
            "a clip lies is known in the plain drawn world alone; take a config of it, such as configs/base.py"
        )
    if not settings.stages_of(TEXT_TO_VIDEO) or settings.shown is not None or not settings.evaluation.prompts:
        raise UserError(
            "the study judges videos of held-out prompts: it needs a stage that trains them, no given frames, and "
            "evaluation.prompts of 1 or more"
        )
    if not _oblong(settings):
        raise UserError(
            f"shapes.sides {settings.shapes.sides} are all square, and square crops leave them as they are: add one "
            "such as (24, 40)"
        )
    first, taken = shared_autoencoder(study)
    runs = [Child(name=name, changes={**taken, "data.square_crop": cut}) for name, cut in _CUTS.items()]
    return first, runs


def _oblong(settings: Settings) -> list[tuple[int, int]]:
    """Returns the sizes that square crops change, in whole tokens."""
    steps = [stride * patch for stride, patch in zip(settings.stride, settings.transformer.patch, strict=True)][1:]
    sides = [tuple(side // step * step for side, step in zip(one, steps, strict=True)) for one in settings.shapes.sides]
    return [(height, width) for height, width in dict.fromkeys(sides) if height != width]


def write_framing(study: Study, *, draws: int) -> dict[str, Any]:
    """Returns how often both finished runs cut their subject, after writing framing.json and framing.html.

    `native` and `square` are of all samples at the sizes that square crops change, as `_summary` says, and so is their
    `gap` with `low`, `high`, `p` and `pairs` (`evaluation.paired.gap_of`); `by_size` has the same of each size, and of
    the squares that the crops leave; `calibration` is of the measure itself (`evaluation.framing.calibrate`).
    """
    settings = study.settings()
    _, runs = framing_runs(study)
    cases = heldout_prompts(settings.evaluation.prompts)
    oblong = _oblong(settings)
    sizes = list(dict.fromkeys([*oblong, *((min(size), min(size)) for size in oblong)]))
    models = {child.name: RunModels(study.workdir(child), study.settings(child)) for child in runs}
    read: dict[tuple[str, str], list[list[Framing | None]]] = {}
    for height, width in sizes:
        for name, one in models.items():
            clips = _samples(study.folder, name, one, cases, (height, width), draws=draws)
            read[_name((height, width)), name] = [[read_framing(clip) for clip in own] for own in clips]
            _show(study.folder, name, _name((height, width)), cases, clips, fps=settings.sampling.fps)
    by_size = {_name(size): _compare(*(read[_name(size), name] for name in _CUTS)) for size in sizes}
    together = [_joined([read[_name(size), name] for size in oblong]) for name in _CUTS]
    result = {
        **_compare(*together),
        "by_size": by_size,
        "calibration": calibrate(_world(settings)),
        "prompts": len(cases),
        "draws": draws,
        "runs": {name: _run_facts(study, name, one) for name, one in models.items()},
    }
    write_atomically(study.folder / FRAMING_FILE, json.dumps(result, indent=2))
    write_framing_page(study.folder / FRAMING_PAGE, result, study.folder / "pictures")
    print("\n".join(_lines(result)), flush=True)
    print(f"report: {study.folder / FRAMING_PAGE}", flush=True)
    return result


def _joined(sizes: list[list[list[Framing | None]]]) -> list[list[Framing | None]]:
    """Returns the readings of each prompt at all sizes."""
    return [[one for own in of_prompt for one in own] for of_prompt in zip(*sizes, strict=True)]


def _samples(
    folder: Path, name: str, models: RunModels, cases: list[PromptCase], size: tuple[int, int], *, draws: int
) -> np.ndarray:
    """Returns clips of each prompt, uint8 (P, S, T, H, W, 3), the same seeds for each run; they are made once."""
    settings = models.settings
    sampling = settings.sampling
    prompts = [case.prompt for case in cases for _ in range(draws)]
    made_by = {**models.facts(), "prompts": prompts, "sampling": repr(sampling)}
    facts = json.dumps(made_by, sort_keys=True)
    path = folder / "samples" / f"{name}_{_name(size)}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["facts"]) == facts:
                return kept["clips"]
    print(f"{len(prompts)} samples of {name} at {_name(size)}", flush=True)
    grid = shapes.clip_token_grid((sampling.frames, *size), stride=settings.stride, patch=settings.transformer.patch)
    canvases = [
        Canvas(prompt=prompt, grid=grid, fps=sampling.fps, seed=_FIRST_SEED + number)
        for number, prompt in enumerate(prompts)
    ]
    made = np.stack(models.sampler()(models.params, canvases))
    clips = made.reshape(len(cases), draws, *made.shape[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path, ".tmp")
    with partial.open("wb") as file:
        np.savez_compressed(file, clips=clips, facts=facts)
    os.replace(partial, path)
    return clips


def _compare(native: list[list[Framing | None]], square: list[list[Framing | None]]) -> dict[str, Any]:
    """Returns the summary of each run at the same prompts and seeds, and their gap."""
    return {
        "native": _summary(native),
        "square": _summary(square),
        **gap_of(_values(native, "whole"), _values(square, "whole")),
    }


def _summary(read: list[list[Framing | None]]) -> dict[str, Any]:
    """Returns how the subjects of samples lie in their frames.

    `whole`, the share that no edge cuts, with its 95 % interval, `low` to `high`; `in_view`, the mean share of the
    subject's area in the frame where it is least; `margin` to the nearest edge where that is least, in radii, its mean
    and in `margin_10` its 10 % quantile; `read`, the share of all `samples` that show a subject: the rest are of these.
    """
    whole, view, margin = (_values(read, name) for name in ("whole", "in_view", "margin"))
    count = int(np.isfinite(whole).sum())
    mean = mean_of(whole)
    return {
        "whole": mean["value"],
        "low": mean["low"],
        "high": mean["high"],
        "in_view": float(np.nanmean(view)) if count else None,
        "margin": float(np.nanmean(margin)) if count else None,
        "margin_10": float(np.nanpercentile(margin, 10)) if count else None,
        "read": count / whole.size,
        "samples": whole.size,
    }


def _values(read: list[list[Framing | None]], name: str) -> np.ndarray:
    """Returns one number of each reading (P, S), NaN where nothing was read."""
    of = {
        "whole": lambda one: float(one.whole),
        "in_view": lambda one: one.in_view_T.min(),
        "margin": lambda one: one.margin_T.min(),
    }[name]
    return np.array([[np.nan if one is None else of(one) for one in own] for own in read], float)


def _world(settings: Settings) -> ShapesWorld:
    drawn = settings.shapes.world(seed=settings.seed, split="heldout", num_clips=_CALIBRATED_ON)
    return ShapesWorld(dataclasses.replace(drawn, sides=tuple(_oblong(settings)), max_objects=1, occluder=False))


def _run_facts(study: Study, name: str, models: RunModels) -> dict[str, Any]:
    facts = study.workdir(Child(name=name, changes={})).facts()
    return {**models.facts(), "seconds": facts.get("seconds")}


def _show(folder: Path, name: str, size: str, cases: list[PromptCase], clips: np.ndarray, *, fps: float) -> None:
    """Writes the first sample of the first prompts, and their words."""
    place = folder / "pictures" / size
    shutil.rmtree(place / name, ignore_errors=True)  # pictures of more prompts, of an earlier report
    (place / name).mkdir(parents=True, exist_ok=True)
    for number in range(min(_SHOWN, len(cases))):
        write_clip(place / name / f"prompt_{number:02d}.gif", clips[number, 0], fps=fps)
    words = {f"prompt_{number:02d}": case.prompt for number, case in enumerate(cases[:_SHOWN])}
    write_atomically(place / "prompts.json", json.dumps(words, indent=2))


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _lines(result: dict[str, Any]) -> list[str]:
    """Returns what matters of a study, line by line."""
    lines = []
    for size, one in {"sizes that crops change": result, **result["by_size"]}.items():
        shares = [
            f"{name} whole in {one[name]['whole']:.1%} ({one[name]['low']:.1%} to {one[name]['high']:.1%})"
            if one[name]["read"]
            else f"{name} shows no subject"
            for name in _CUTS
        ]
        lines.append(f"{size}: {', '.join(shares)}")
        if one["gap"] is not None:
            lines[-1] += f", gap {one['gap']:.3f} ({one['low']:.3f} to {one['high']:.3f}), p {one['p']:.1g}"
    calibration = result["calibration"]
    return [*lines, f"the measure is right on {calibration['right']:.1%} of {calibration['clips']} drawn clips"]
