"""What a model makes of the first frames of scenes that training never showed, against what must come of them.

The autoencoder's reconstruction of the truth is judged the same way: that is the floor, no model on it does better.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sora_jax.core.tree import Params
from sora_jax.data.scenes.drawing import DrawnScene
from sora_jax.data.scenes.worlds import DrawnWorlds, WorldSplit, WorldsSpec
from sora_jax.evaluation.evaluator import VideoScores
from sora_jax.evaluation.probes.depth import read_passing, read_turning
from sora_jax.evaluation.probes.lasting import read_eating, read_painting
from sora_jax.evaluation.probes.motion_laws import read_ball
from sora_jax.evaluation.probes.permanence import read_hiding
from sora_jax.evaluation.probes.play import read_game
from sora_jax.evaluation.probes.tracking import ProbeVerdict
from sora_jax.generate.job import Job
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import Request
from sora_jax.generate.sampler import Sampler
from sora_jax.generate.scheduler import make_all

_LONGER = 3  # times the length of a scene, that trails are also made
_LONG_SHARE = 6  # of the clips of lasting things one in so many is made that long
_GAP = 2  # px of white between what is true and what was made
_LONG = "trail_long"

# Of what is drawn as `variant`: the name of its score, and who reads it.
READERS: dict[str, tuple[str, Callable[..., ProbeVerdict]]] = {
    "behind": ("permanence", read_hiding),
    "rests": ("permanence", read_hiding),
    "pans": ("permanence", read_hiding),
    "passing": ("parallax", read_passing),
    "turning": ("turning", read_turning),
    "painting": ("trail", read_painting),
    "eating": ("eating", read_eating),
    "game": ("game", read_game),
    "flies": ("physics", read_ball),
    "bounces": ("physics", read_ball),
    "falls": ("physics", read_ball),
}
# Which clips a world is judged on, and what its score is then called besides its name.
_SPLITS: dict[str, dict[WorldSplit, str]] = {
    "physics": {"inside": "", "heldout": "_combined", "outside": "_outside"},
}
_HELD_OUT: dict[WorldSplit, str] = {"heldout": ""}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Case:
    score: str
    scene: DrawnScene
    truth_THWC: np.ndarray
    given: int
    frames: int  # of the clip that is made


def read_scene(scene: DrawnScene, pixels_THWC: np.ndarray, given: int) -> ProbeVerdict:
    """Returns the verdict on a clip, uint8 (T, H, W, 3), whose first `given` frames are those of the scene."""
    return READERS[scene.variant][1](scene, pixels_THWC, given)


def judge_probes(
    sampler: Sampler, params: Params, limits: ModelLimits, spec: WorldsSpec, *, count: int, seed: int
) -> VideoScores:
    """Returns how far a model keeps to the worlds of `spec`, on `count` clips of each.

    A game is given its first frame and the actions in words; other clips are given two frames of tokens. By the name of
    a score are the share of clips that are `right`, its standard error, the same of the floor, and means of errors;
    `physics` also has the error of velocities over that of the floor. Videos have their own noise, from `seed` on.
    """
    cases = [case for kind in spec.kinds for case in _cases(spec, kind, limits, count)]
    jobs = [_job(case, seed=seed + number) for number, case in enumerate(cases)]
    videos = make_all(sampler, params, jobs, limits)
    found: dict[str, list[tuple[_Case, ProbeVerdict, ProbeVerdict | None]]] = {}
    clips: dict[str, list[np.ndarray]] = {}
    prompts: dict[str, list[str]] = {}
    for case, job, video in zip(cases, jobs, videos, strict=True):
        made_THWC = video.clip[: case.frames]
        floor = None
        if case.frames == len(case.truth_THWC):
            again_THWC = sampler.codec.reconstruct(case.truth_THWC[None])[0]
            floor = read_scene(case.scene, again_THWC, case.given)
        one = (case, read_scene(case.scene, made_THWC, case.given), floor)
        found.setdefault(case.score, []).append(one)
        clips.setdefault(case.score, []).append(_beside(case.truth_THWC, made_THWC))
        prompts.setdefault(case.score, []).append(job.prompts[0])
    scores: dict[str, Any] = {}
    for name, members in found.items():
        scores |= _summary(name, [made for _, made, _ in members], [floor for *_, floor in members if floor])
    return VideoScores(scores={**scores, "groups": _groups(found)}, clips=clips, prompts=prompts)


def _cases(spec: WorldsSpec, kind: str, limits: ModelLimits, count: int) -> list[_Case]:
    """Returns what is to be made of a world; every split has its share of `count`, at least one clip."""
    splits = _SPLITS.get(kind, _HELD_OUT)
    given = limits.first if kind == "game" else limits.first + limits.step
    cases = []
    for split, suffix in splits.items():
        share = max(1, count // len(splits))
        world = DrawnWorlds(dataclasses.replace(spec, kinds=(kind,), split=split, num_clips=share))
        for scene in map(world.scene, range(share)):
            score = f"{READERS[scene.variant][0]}{suffix}"
            truth_THWC = scene.render()
            cases.append(_Case(score=score, scene=scene, truth_THWC=truth_THWC, given=given, frames=len(truth_THWC)))
    painted = [case for case in cases if case.score == "trail"]
    longer = painted[: -(-len(painted) // _LONG_SHARE)]
    return cases + [dataclasses.replace(case, score=_LONG, frames=_LONGER * case.frames) for case in longer]


def _job(case: _Case, *, seed: int) -> Job:
    form, prompt = case.scene.form, case.scene.captions()[0]
    request = Request(task="extend", prompt=(prompt,), video=("video",), seed=seed)
    return Job(
        request=request,
        prompts=request.prompt,
        negative="",
        size=(form.height, form.width),
        fps=form.fps,
        frames=case.frames - case.given,
        clips=(case.truth_THWC[: case.given],),
    )


def _summary(name: str, made: Sequence[ProbeVerdict], floor: Sequence[ProbeVerdict]) -> dict[str, float]:
    """Returns the figures of one score by name."""
    right, count = _mean(made, "right"), len(made)
    found = {name: right, f"{name}_stderr": float(np.sqrt(right * (1 - right) / count)), f"{name}_clips": count}
    if floor:
        found[f"{name}_floor"] = _mean(floor, "right")
    for part in made[0]:
        if part == "right":
            continue
        found[f"{name}_{part}"] = _mean(made, part)
        if floor:
            found[f"{name}_{part}_floor"] = _mean(floor, part)
    if floor and "velocity_error" in made[0]:
        least = max(_mean(floor, "velocity_error"), 1e-6)
        found[f"{name}_velocity_ratio"] = _mean(made, "velocity_error") / least
    return found


def _mean(verdicts: Sequence[ProbeVerdict], part: str) -> float:
    return float(np.mean([verdict[part] for verdict in verdicts]))


def _groups(found: dict[str, list[tuple[_Case, ProbeVerdict, ProbeVerdict | None]]]) -> list[dict[str, Any]]:
    """Returns a row for each thing that is shown under each score."""
    rows = []
    for name, members in found.items():
        for variant in dict.fromkeys(case.scene.variant for case, *_ in members):
            ours = [(made, floor) for case, made, floor in members if case.scene.variant == variant]
            floors = [floor for _, floor in ours if floor]
            row: dict[str, Any] = {"score": name, "shows": variant, "clips": len(ours)}
            row["right"] = _mean([made for made, _ in ours], "right")
            if floors:
                row["floor"] = _mean(floors, "right")
            rows.append(row)
    return rows


def _beside(truth_THWC: np.ndarray, made_THWC: np.ndarray) -> np.ndarray:
    """Returns the truth, which rests at its end where the other is longer, and at its right what was made."""
    longer_THWC = truth_THWC[np.minimum(np.arange(len(made_THWC)), len(truth_THWC) - 1)]
    gap_THWC = np.full((*made_THWC.shape[:2], _GAP, 3), 255, np.uint8)
    return np.concatenate([longer_THWC, gap_THWC, made_THWC], axis=2)
