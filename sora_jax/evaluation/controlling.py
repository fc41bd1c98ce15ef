"""Does what is made follow edges and boxes that are given beside it, and its prompt as well.

Letters: N tracks, T H W C frames, rows, columns, colours of pixels, 4: top, left, bottom, right in px.
"""

from collections.abc import Sequence

import numpy as np

from sora_jax.core.errors import UserError
from sora_jax.core.tree import Params
from sora_jax.data.sources.shapes_prompts import PromptCase
from sora_jax.data.sources.shapes_world import BACKGROUNDS, DIRECTIONS, RADII, ShapesWorld, lay_object, render
from sora_jax.evaluation import shapes_oracle
from sora_jax.evaluation.control import box_centre_error, edges_f1
from sora_jax.evaluation.evaluator import VideoScores
from sora_jax.evaluation.tasks import opposite_colour, plain_prompt
from sora_jax.generate.control import GivenControl, drawn_tracks
from sora_jax.generate.job import Job
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import Request
from sora_jax.generate.sampler import Sampler
from sora_jax.generate.scheduler import make_all

# Controls that can be judged.
JUDGED_CONTROLS = ("edges", "boxes")
# Of curves, shares of a side: their way, about that of drawn motions, and how far they leave the straight line.
_WAY, _BOW, _WAVE = 0.38, 0.19, 0.12


def judge_control(
    sampler: Sampler, params: Params, limits: ModelLimits, world: ShapesWorld, cases: Sequence[PromptCase], *, seed: int
) -> VideoScores:
    """Returns how well a model follows those of `JUDGED_CONTROLS` that it was trained with.

    `world` draws one moving object in each clip, at the size and of the length of the run's samples. The edges of its
    clips control videos of the same prompt with the opposite colour: `edges_f1` is the F1 of the edges of clip and
    video, mean over clips, `edges_f1_ceiling` that of the clip and its reconstruction, and `colour` the share of videos
    of the colour that was asked for. Boxes along half circles and waves, which training never shows, control videos of
    `cases`: `boxes_px` is `BoxError.px`, mean over videos, `boxes_px_floor` that of drawn clips of these curves and
    prompts through the autoencoder, `boxes_lost` the share of videos in which some frame lacks its object.
    Raises UserError where the model was trained with neither.
    """
    known = [kind for kind in JUDGED_CONTROLS if kind in limits.controls]
    if not known:
        raise UserError(
            f"control is judged of {' and '.join(JUDGED_CONTROLS)}, and {limits.name} was trained with "
            f"{', '.join(limits.controls) or 'nothing'} beside clips: train configs/control.py"
        )
    found = VideoScores(scores={"clips": len(world)}, clips={}, prompts={})
    if "edges" in known:
        _judge_edges(found, sampler, params, limits, world, seed=seed)
    if "boxes" in known:
        _judge_boxes(found, sampler, params, limits, cases, seed=seed)
    return found


def _judge_edges(
    found: VideoScores, sampler: Sampler, params: Params, limits: ModelLimits, world: ShapesWorld, *, seed: int
) -> None:
    """Adds what edges of drawn clips say of another colour."""
    scenes = [world.scene(index) for index in range(len(world))]
    true = [render(scene) for scene in scenes]
    colours = [opposite_colour(scene) for scene in scenes]
    prompts = [plain_prompt(scene, colour=colour) for scene, colour in zip(scenes, colours, strict=True)]
    given = [
        GivenControl(kind="edges", name="clip", clip_THWC=clip, fps=scene.fps, level=0.0)
        for scene, clip in zip(scenes, true, strict=True)
    ]
    made = _made(found, "edges", sampler, params, limits, prompts, given, seed=seed)
    ceiling = [sampler.codec.reconstruct(clip[None])[0] for clip in true]
    # A clip without an edge of its own says nothing.
    pairs = [(edges_f1(a, b), edges_f1(a, c)) for a, b, c in zip(true, made, ceiling, strict=True)]
    scored = [(ours, most) for ours, most in pairs if ours is not None and most is not None]
    ours, most = np.mean(scored, axis=0) if scored else (0.0, 0.0)
    right = [shapes_oracle.read(clip).colour == colour for clip, colour in zip(made, colours, strict=True)]
    found.scores.update(edges_f1=float(ours), edges_f1_ceiling=float(most), colour=float(np.mean(right)))


def _judge_boxes(
    found: VideoScores,
    sampler: Sampler,
    params: Params,
    limits: ModelLimits,
    cases: Sequence[PromptCase],
    *,
    seed: int,
) -> None:
    """Adds how far from boxes on curves things are."""
    tracks = [curved_track(case, number, limits) for number, case in enumerate(cases)]
    drawn = [drawn_tracks(boxes_NT4, limits.size, limits) for boxes_NT4 in tracks]
    given = [
        GivenControl(kind="boxes", name="track", clip_THWC=clip, fps=limits.fps, level=0.0, as_is=True)
        for clip in drawn
    ]
    made = _made(found, "boxes", sampler, params, limits, [case.prompt for case in cases], given, seed=seed)
    errors = [box_centre_error(boxes_NT4, clip) for boxes_NT4, clip in zip(tracks, made, strict=True)]
    true = [_drawn_along(boxes_NT4, case, limits.size) for boxes_NT4, case in zip(tracks, cases, strict=True)]
    floor = [sampler.codec.reconstruct(clip[None])[0] for clip in true]
    least = [box_centre_error(boxes_NT4, clip) for boxes_NT4, clip in zip(tracks, floor, strict=True)]
    found.scores.update(
        boxes_px=float(np.mean([error.px for error in errors])),
        boxes_px_floor=float(np.mean([error.px for error in least])),
        boxes_lost=float(np.mean([error.lost > 0 for error in errors])),
    )


def curved_track(case: PromptCase, number: int, limits: ModelLimits) -> np.ndarray:
    """Returns boxes_NT4, N = 1, of the object of a prompt on a curve that goes where its motion says.

    Half circles and waves take turns, and so do both ways to bend them, for each of four motions that take turns too.
    """
    height, width = limits.size
    (kind,) = case.objects
    down, right = DIRECTIONS[kind.motion or "right"]
    progress_T = np.linspace(0, 1, limits.frames)
    turn = number + number // 4
    if turn % 2:
        along_T, across_T = progress_T - 0.5, _WAVE * np.sin(2 * np.pi * progress_T)
    else:
        along_T, across_T = -np.cos(np.pi * progress_T) / 2, _BOW * (np.sin(np.pi * progress_T) - 0.5)
    across_T = across_T if turn // 2 % 2 else -across_T
    row_T = (0.5 + _WAY * along_T * down + across_T * abs(right)) * height
    column_T = (0.5 + _WAY * along_T * right + across_T * abs(down)) * width
    half = RADII["small"] * min(height, width)
    return np.stack([row_T - half, column_T - half, row_T + half, column_T + half], axis=-1)[None]


def _drawn_along(boxes_NT4: np.ndarray, case: PromptCase, size: tuple[int, int]) -> np.ndarray:
    """Returns a clip, uint8 (T, H, W, 3), of the one object that a prompt names, in the middle of its boxes."""
    (boxes_T4,), (kind,) = boxes_NT4, case.objects
    row_T, column_T = ((boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2).T
    pixels_THWC = np.full((len(boxes_T4), *size, 3), BACKGROUNDS[case.background], np.float32)
    radius = float(boxes_T4[0, 2] - boxes_T4[0, 0]) / 2
    lay_object(pixels_THWC, kind.colour, kind.shape, place_T=(row_T, column_T), radius=radius)
    return np.rint(pixels_THWC).astype(np.uint8)


def _made(
    found: VideoScores,
    kind: str,
    sampler: Sampler,
    params: Params,
    limits: ModelLimits,
    prompts: Sequence[str],
    given: Sequence[GivenControl],
    *,
    seed: int,
) -> list[np.ndarray]:
    """Returns the video of each prompt under its control, and notes both side by side."""
    jobs = [
        _job(prompt, control, limits, seed=seed + number)
        for number, (prompt, control) in enumerate(zip(prompts, given, strict=True))
    ]
    made = [video.clip for video in make_all(sampler, params, jobs, limits)]
    found.clips[kind] = [
        np.concatenate([_shown(control, clip, limits), clip], axis=2) for control, clip in zip(given, made, strict=True)
    ]
    found.prompts[kind] = list(prompts)
    return made


def _job(prompt: str, control: GivenControl, limits: ModelLimits, *, seed: int) -> Job:
    request = Request(prompt=(prompt,), control=(control.kind,), control_video=(control.name,), seed=seed)
    return Job(
        request=request,
        prompts=request.prompt,
        negative="",
        size=limits.size,
        fps=control.fps,
        frames=limits.frames,
        controls=(control,),
    )


def _shown(control: GivenControl, clip_THWC: np.ndarray, limits: ModelLimits) -> np.ndarray:
    """Returns what the model is given beside a clip, as large as that; black where it finds nothing."""
    made = limits.controls[control.kind](control.clip_THWC, control.fps, as_is=control.as_is)
    if made is None:
        return np.zeros_like(clip_THWC)
    frames, height, width = clip_THWC.shape[:3]
    return made.pixels_THWC.repeat(made.scale, axis=1).repeat(made.scale, axis=2)[:frames, :height, :width]
