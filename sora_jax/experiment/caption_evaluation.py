"""How well the captioner of a run describes held-out clips of the drawn world, and tells whose caption is whose."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sora_jax.core.distributed import is_first
from sora_jax.core.errors import UserError
from sora_jax.core.files import write_atomically
from sora_jax.core.tree import Params
from sora_jax.data.sources.shapes_world import DIRECTIONS, Scene, ShapesWorld, render
from sora_jax.evaluation.caption_reader import parse_caption, score_captions
from sora_jax.evaluation.captions import bleu4, cider_d, retrieve
from sora_jax.experiment.captioners import load_captioner, make_describer
from sora_jax.experiment.judged_clips import heldout_of
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.stage_settings import CAPTIONER
from sora_jax.generate.captioning import Describer, EncodedClip, WrittenCaption
from sora_jax.models.codec import Codec
from sora_jax.video import latents

# Captions of the drawn world that begin so name the ground too, which short ones leave out.
_BEGINNING = "on"
_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


def has_captions(settings: Settings) -> bool:
    """Returns whether the captions of the run can be judged: it trains a captioner, on the drawn world."""
    return bool(settings.stages_of(CAPTIONER)) and settings.data.source == "shapes" and settings.shapes.worlds is None


def judge_captions(models: RunModels, settings: Settings, *, count: int | None = None) -> dict[str, Any]:
    """Returns the scores of captions of `count` held-out clips, by default as configured, and writes these captions.

    As `evaluation.caption_reader` and `evaluation.captions` say; `reversed` is the share of moving clips of the size of
    samples that, played backwards, are said to move the other way; where the world shows two objects, `swapped` is the
    share of pairs with exchanged colours of which both are told rightly; of samples that are images neither. Raises
    UserError as `has_captions`.
    """
    if not has_captions(settings):
        raise UserError("captions are judged where a captioner is trained on the drawn world: see configs/captions.py")
    params, stage, step = load_captioner(models.workdir, settings)
    describer = make_describer(settings, rows=settings.packing.rows)
    world = settings.shapes.source(seed=settings.seed, split="heldout")
    assert isinstance(world, ShapesWorld), world
    prepared = heldout_of(models.workdir, settings, models.codec, count=count)
    clips = [prepared[number] for number in range(len(prepared))]
    numbers = {world.source_id(number): number for number in range(len(world))}
    scenes = [world.scene(numbers[clip.source_id]) for clip in clips]
    written = describer(params, clips, prefix=_BEGINNING)
    texts = [f"{_BEGINNING} {one.text}" for one in written]
    plain = [clip.captions[1] for clip in clips]
    to_captions, to_clips = retrieve(*describer.compared(params, clips, plain), plain)
    own = [clip.captions for clip in clips]
    _write(models, texts, written, own)
    return {
        "captions": {
            **score_captions(zip(scenes, texts, strict=True)).facts(),
            "retrieval_r1": to_captions.r1,
            "retrieval_r1_clips": to_clips.r1,
            "cider": float(np.mean(cider_d(texts, own))),
            "bleu4": bleu4(texts, own),
            **scores_of_videos(models.codec, settings, describer, params, world),
            "clips": len(clips),
            "stage": stage,
            "step": step,
        }
    }


def scores_of_videos(
    codec: Codec, settings: Settings, describer: Describer, params: Params, world: ShapesWorld
) -> dict[str, float]:
    """Returns `reversed`, and `swapped` where there is one, of clips of the size of samples; nothing of images."""
    if settings.sampling.frames == 1:
        return {}
    back = _reversed_share(codec, settings, describer, params, world)
    return {"reversed": back, **_binding(codec, settings, describer, params, world)}


def _reversed_share(
    codec: Codec, settings: Settings, describer: Describer, params: Params, world: ShapesWorld
) -> float:
    """Returns the share of clips that are said to move against how they were drawn, when they are played backwards."""
    sampling, count = settings.sampling, settings.evaluation.clips
    moving = _moving(settings, world)
    chosen = [number for number in range(len(moving)) if _direction(moving.scene(number)) is not None][:count]
    back = [moving[number].pixels_THWC[::-1] for number in chosen]
    written = describer(params, _encoded(codec, back, fps=sampling.fps))
    found = [parse_caption(one.text) for one in written]
    wanted = [_OPPOSITE[str(_direction(moving.scene(number)))] for number in chosen]
    right = [
        told is not None and [one.motion for one in told.objects] == [motion]
        for told, motion in zip(found, wanted, strict=True)
    ]
    return float(np.mean(right))


def _binding(
    codec: Codec, settings: Settings, describer: Describer, params: Params, world: ShapesWorld
) -> dict[str, float]:
    """Returns `swapped`, the share of pairs of clips in both of which each shape is said to have its own colour.

    Two clips of a pair show the same two objects and differ in which has which colour. Nothing where the world shows
    one object alone, or none of its clips shows two.
    """
    moving = _moving(settings, world)
    scenes = [moving.scene(number) for number in range(len(moving))]
    pairs = [scene for scene in scenes if len(scene.objects) == 2][: settings.evaluation.clips]
    if not pairs:
        return {}
    both = [*pairs, *map(swap_colours, pairs)]
    clips = _encoded(codec, [render(scene) for scene in both], fps=settings.sampling.fps)
    told = [one.text for one in describer(params, clips)]
    bound_2N = np.array([is_bound(text, scene) for text, scene in zip(told, both, strict=True)]).reshape(2, -1)
    return {"swapped": float(np.mean(bound_2N.all(axis=0)))}


def swap_colours(scene: Scene) -> Scene:
    """Returns the scene of two objects in which each has the colour of the other."""
    first, second = scene.objects
    exchanged = dataclasses.replace(first, colour=second.colour), dataclasses.replace(second, colour=first.colour)
    return dataclasses.replace(scene, objects=exchanged)


def is_bound(text: str, scene: Scene) -> bool:
    """Returns whether a caption names the objects of a scene, and no others, each by its own colour and shape."""
    told = parse_caption(text)
    named = [] if told is None else [(str(one.colour), str(one.shape)) for one in told.objects]
    return sorted(named) == sorted((one.colour, one.shape) for one in scene.objects)


def _moving(settings: Settings, world: ShapesWorld) -> ShapesWorld:
    """Returns the world's moving clips of the size of samples, four times as many as are judged."""
    sampling = settings.sampling
    shape = {"image_share": 0.0, "sides": (sampling.size,), "frames": (sampling.frames,), "fps": (sampling.fps,)}
    return ShapesWorld(dataclasses.replace(world.config, num_clips=4 * settings.evaluation.clips, **shape))


def _encoded(codec: Codec, clips: Sequence[np.ndarray], *, fps: float) -> list[EncodedClip]:
    """Returns clips of one shape, uint8 (T, H, W, 3), as a captioner reads them."""
    latent_NTHWC = latents.normalise(codec.encode(np.stack(clips)), codec.mean_C, codec.scale_C)
    return [EncodedClip(latent_THWC=one, fps=fps) for one in latent_NTHWC]


def _direction(scene: Scene) -> str | None:
    """Returns which way the one object of a scene moves; None where it does not, or there are two."""
    motion = scene.objects[0].motion
    return motion if len(scene.objects) == 1 and motion in DIRECTIONS else None


def _write(
    models: RunModels, texts: Sequence[str], written: Sequence[WrittenCaption], own: Sequence[tuple[str, ...]]
) -> None:
    """Writes what was said of each clip beside its own captions."""
    if is_first():
        lines = [
            f"{text}{'' if one.whole else ' (cut)'} | {captions[1]}"
            for text, one, captions in zip(texts, written, own, strict=True)
        ]
        folder = models.workdir.path / "samples" / "evaluation"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "captions.txt", "\n".join(["written | its own", *lines, ""]))
