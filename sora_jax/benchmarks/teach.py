"""Teaches a model in Wan's form a colour that it never saw, by an adapter from a few clips, and asks what it cost.

  python -m sora_jax.benchmarks.teach --json=FILE
  python -m sora_jax.benchmarks.teach --folder=runs/teach --lora_steps=300 --json=FILE

The way of who adapts a public model, on the drawn world at a size of minutes. An autoencoder sees every colour, as
public ones have; its transformer hears the frozen `minilm` and has clips of every colour but one. Both are exported as
a folder of diffusers, and what follows reads that as `--model`: an adapter is trained on clips of the colour left out,
exported, and added in sampling. The oracle judges prompts of the new colour and of the old ones, both in combinations
that no clip has, from the same noise before and after. With --folder the parts stay there, and those that are made
are not made again: `seconds` is then of what was left to do.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.config_files import load_config
from sora_jax.data.clips import Clip
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.shapes_prompts import PromptCase, heldout_prompts
from sora_jax.data.sources.shapes_world import (
    BACKGROUNDS,
    DIRECTIONS,
    SHAPES,
    STILL,
    Attributes,
    ShapesWorld,
    WorldConfig,
)
from sora_jax.evaluation.evaluator import judge_clips
from sora_jax.experiment.exporting import export_autoencoder, export_lora, export_transformer
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.run import run
from sora_jax.experiment.session import open_public
from sora_jax.experiment.settings import read_settings
from sora_jax.models.interop.variants import FREQUENCY_DIM, PATCH, ROPE_THETA, TEXT_TOKENS
from sora_jax.train.workdir import Workdir

_FLAGS = Flags()
_JSON = _FLAGS.figures()
_FOLDER = _FLAGS.path("folder", None, "Where the parts stay; default: a temporary folder.")
_BASE = _FLAGS.path("base", None, "A run that this command has made; default: it makes one.")
_BASE_CLIPS = _FLAGS.integer("base_clips", 1536, "Clips of the run.", least=16)
_AUTOENCODER_STEPS = _FLAGS.integer("autoencoder_steps", 1200, "Of the run.", least=1)
_BASE_STEPS = _FLAGS.integer("base_steps", 2500, "Of its transformer.", least=1)
_PRIOR = _FLAGS.integer("prior", 128, "Clips of the model's own beside the new ones.", least=0)
_LORA_STEPS = _FLAGS.integer("lora_steps", 400, "Of the adapter.", least=1)
_LORA_RATE = _FLAGS.number("lora_rate", 2e-3, "Its learning rate.", least=0.0)
_PROMPTS = _FLAGS.integer("prompts", 48, "Of either kind that are judged.", least=1)
_WEIGHT = _FLAGS.number("weight", 1.0, "Of the adapter, in sampling.")
_SEED = _FLAGS.integer("seed", 0, "Of training; clips, prompts and the noise of samples stay as they are.", least=0)

NEW_COLOUR = "purple"
NEW_CLIPS = 64
_SIDE, _FRAMES, _FPS = 24, 5, 10.0
_STAGE = "videos"
_SCORES = ("colour", "motion", "shape")
# Tokens of a clip, clips of a row, and text tokens of a caption at most.
_TOKENS, _CLIPS, _TEXT = 18, 7, 20
_PACKING = {
    "data.max_frames": _FRAMES,
    "data.min_tokens": 1,
    "data.max_tokens": _TOKENS,
    "packing.tokens": _TOKENS * _CLIPS,
    "packing.text_tokens": _TEXT * _CLIPS,
    "packing.segments": _CLIPS,
    "text.encoder": "minilm",
    "text.max_tokens": _TEXT,
    "checkpoint.every_steps": 500,
    "log.samples_per_stage": 0,
    "stages.prepare.batch": 32,
}
# As Wan 2.1's with a level less, so that four pixels are a position, and with the shortcuts of 2.2.
_AUTOENCODER: dict[str, Any] = {
    "autoencoder.channels": 16,
    "autoencoder.patch": 1,
    "autoencoder.width": 16,
    "autoencoder.multipliers": (1, 2, 2),
    "autoencoder.space_down": (True, True),
    "autoencoder.time_down": (True, True),
    "autoencoder.decoder_width": 16,
    "autoencoder.decoder_blocks": 2,
    "autoencoder.attention": True,
}
# What Wan's names can hold: its patch, its text, nothing pooled, a latent of 16 channels, a velocity.
_BASE_CHANGES: dict[str, Any] = _PACKING | {
    "data.source": "folder",
    "packing.rows": 4,
    **_AUTOENCODER,
    "stages.autoencoder.crops.buckets": ((_FRAMES, _SIDE, _SIDE, 8),),
    "transformer.patch": PATCH,
    "transformer.frequency_dim": FREQUENCY_DIM,
    "transformer.rope_theta": ROPE_THETA,
    "transformer.time_rate": _FPS / 4,  # one position for each latent frame: such models count them
    "transformer.text_pad_to": TEXT_TOKENS,
    "transformer.pooled_text": False,
    "transformer.place_features": False,
    "diffusion.path.prediction": "velocity",
    f"stages.{_STAGE}.mix.images": 0.0,
    f"stages.{_STAGE}.mix.videos": 1.0,
    f"stages.{_STAGE}.known.none": 1.0,
    **{f"stages.{_STAGE}.known.{name}": 0.0 for name in ("first", "last", "ends", "random_frames", "region")},
}
# Of the adapter beside what configs/wan_lora.py says for devices that are larger.
_LORA_CHANGES: dict[str, Any] = _PACKING | {
    "precision": "float32",
    "packing.rows": 4,
    "transformer.remat": "none",
    "transformer.lora.rank": 8,
    "diffusion.caption_dropout": 0.0,
    # Those of a public model have a negative prompt that is longer than these texts.
    "sampling.prompts": (),
    "sampling.size": (_SIDE, _SIDE),
    "sampling.frames": _FRAMES,
    f"stages.{_STAGE}.schedule.warmup_steps": 10,
    f"stages.{_STAGE}.frozen_dtype": "float32",
}
# As the run is sampled, where public models have another solver and more of both.
_SOLVER, _SOLVER_STEPS = "stochastic", 20
_GUIDANCE = 1.5
_SEED_OF_OWN = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How long everything is trained, and how much is asked.

    Attributes:
      clips: Of the base run.
      autoencoder: Steps.
      base: Steps of its transformer.
      prior: Clips of the model's own, in training the adapter.
      lora: Steps of the adapter.
      rate: Learning rate of the adapter.
      prompts: Of the new colour, and of the old ones.
      weight: Of the adapter, in sampling.
      seed: Of all training.
    """

    clips: int
    autoencoder: int
    base: int
    prior: int
    lora: int
    rate: float
    prompts: int
    weight: float
    seed: int


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    sizes = Sizes(
        clips=_BASE_CLIPS.value,
        autoencoder=_AUTOENCODER_STEPS.value,
        base=_BASE_STEPS.value,
        prior=_PRIOR.value,
        lora=_LORA_STEPS.value,
        rate=_LORA_RATE.value,
        prompts=_PROMPTS.value,
        weight=_WEIGHT.value,
        seed=_SEED.value,
    )
    with tempfile.TemporaryDirectory() as temporary:
        publish(figures_of(Path(_FOLDER.value or temporary), _BASE.value, sizes), _JSON.value)


def figures_of(folder: Path, base: str | None, sizes: Sizes) -> list[Figure]:
    """Returns what an adapter brought and cost; what is made on the way lies in `folder`."""
    workdir = Path(base) if base is not None else train_base(folder, sizes)
    model = export_base(workdir, folder / "model")
    clips = folder / "new_clips"
    began = time.monotonic()
    write_clips(clips, chosen_clips(NEW_CLIPS, new=True) + (own_clips(model, sizes.prior) if sizes.prior else []))
    adapter = train_adapter(folder, model, clips, sizes)
    seconds = time.monotonic() - began
    cases = {"new": new_prompts(sizes.prompts), "old": old_prompts(sizes.prompts)}
    prompts = [case.prompt for case in (*cases["new"], *cases["old"])]
    weights: list[dict[Path, float]] = [{}, {adapter: 0.0}, {adapter: sizes.weight}]
    plain, silent, taught = (sample(model, prompts, lora=lora) for lora in weights)
    scores = {}
    for when, made in (("before", plain), ("after", taught)):
        scores[f"new_{when}"] = judge_clips(cases["new"], made[: sizes.prompts]).scores
        scores[f"old_{when}"] = judge_clips(cases["old"], made[sizes.prompts :]).scores
    same = all(np.array_equal(one, other) for one, other in zip(plain, silent, strict=True))
    return _figures(scores, seconds=seconds, same=same, prompts=sizes.prompts)


def _figures(scores: dict[str, dict[str, float]], *, seconds: float, same: bool, prompts: int) -> list[Figure]:
    change = min(scores["old_after"][name] - scores["old_before"][name] for name in _SCORES)
    figures = [
        Figure(
            name="new_concept",
            value=scores["new_after"]["colour"],
            target="at least 0.9",
            meaning=f"share of {prompts} prompts of the new colour in which it is seen",
        ),
        Figure(
            name="old_change",
            value=change,
            target="at least -0.05",
            meaning=f"of {prompts} prompts of old colours: change of colour, motion or shape, whichever lost most",
        ),
        Figure(name="seconds", value=seconds, target="at most 180", meaning="to make clips, prepare and train, s"),
        Figure(
            name="same_at_weight_0",
            value=float(same),
            target="1",
            meaning="whether an adapter of weight 0 changes no bit of any sample",
        ),
    ]
    for group, found in scores.items():
        figures += [
            Figure(name=f"{group}_{name}", value=found[name], target=None, meaning="share of prompts, of that alone")
            for name in _SCORES
        ]
    return figures


def train_base(folder: Path, sizes: Sizes) -> Path:
    """Trains an autoencoder on all colours, and the run that is made public on all but one; returns its workdir."""
    seen, heard = folder / "autoencoder", folder / "base"
    for workdir, stages, new in ((seen, ("autoencoder",), None), (heard, ("prepare", _STAGE), False)):
        clips = folder / f"{workdir.name}_clips"
        write_clips(clips, chosen_clips(sizes.clips, new=new))
        config = _changed("configs/base.py", _BASE_CHANGES | {"run": stages})
        config.data.path, config.seed = str(clips), sizes.seed
        config.stages.autoencoder.steps = sizes.autoencoder
        config.stages[_STAGE].steps = sizes.base
        config.autoencoder.start_from = None if workdir is seen else str(seen)
        run(config, workdir, until="diffusion")
    return heard


def export_base(workdir: Path, folder: Path) -> Path:
    """Writes a run as a folder of diffusers, where there is none yet, and returns the folder."""
    index = folder / "model_index.json"
    if not index.exists():
        opened = Workdir(workdir)
        settings = read_settings(opened.config())
        export_transformer(RunModels(opened, settings), str(folder / "transformer"), "diffusers", dtype=None)
        export_autoencoder(opened, settings, str(folder / "vae"), "diffusers")
        parts = {"transformer": "WanTransformer3DModel", "vae": "AutoencoderKLWan"}
        named = {name: ["diffusers", kind] for name, kind in parts.items()}
        index.write_text(json.dumps({"_class_name": "WanPipeline", **named}))
    return folder


def train_adapter(folder: Path, model: Path, clips: Path, sizes: Sizes) -> Path:
    """Trains an adapter of a public model on clips; returns its file."""
    config = _changed("configs/wan_lora.py", _LORA_CHANGES)
    config.model, config.data.path, config.seed = str(model), str(clips), sizes.seed
    config.stages[_STAGE].steps = sizes.lora
    config.stages[_STAGE].schedule.learning_rate = sizes.rate
    workdir, file = folder / "adapter", folder / "adapter.safetensors"
    run(config, workdir, until="diffusion")
    if not file.exists():
        opened = Workdir(workdir)
        export_lora(opened, read_settings(opened.config()), str(file), dtype="float32", trigger=NEW_COLOUR)
    return file


def sample(model: Path, prompts: Sequence[str], *, lora: dict[Path, float], seed: int = 0) -> list[np.ndarray]:
    """Returns a clip for each prompt by a public model, noise of `seed` for the first, and so on."""
    opened = open_public(model, lora={str(file): weight for file, weight in lora.items()})
    return opened.sample(
        prompts,
        size=(_SIDE, _SIDE),
        frames=_FRAMES,
        fps=_FPS,
        seed=[seed + number for number in range(len(prompts))],
        negative="",
        guidance=_GUIDANCE,
        solver=_SOLVER,
        steps=_SOLVER_STEPS,
    )


def chosen_clips(count: int, *, new: bool | None) -> list[Clip]:
    """Returns the first moving clips of training: of the new colour, of any other, or, with None, of all."""
    world = ShapesWorld(
        WorldConfig(
            seed=int(new is True),
            num_clips=40 * count,
            sides=((_SIDE, _SIDE),),
            frames=(_FRAMES,),
            image_share=0.0,
            fps=(_FPS,),
            max_objects=1,
            occluder=False,
            split="train",
        )
    )
    clips: list[Clip] = []
    for index in range(len(world)):
        (thing,) = world.scene(index).objects
        wanted = new is None or (thing.colour == NEW_COLOUR) == new
        if wanted and thing.motion != STILL:  # of frames that are equal a gif keeps one
            clips.append(world[index])
        if len(clips) == count:
            break
    return clips


def own_clips(model: Path, count: int) -> list[Clip]:
    """Returns what the model makes of captions of its training, from noise with which nothing is judged."""
    shown = chosen_clips(count, new=False)
    made = sample(model, [clip.captions[0] for clip in shown], lora={}, seed=_SEED_OF_OWN)
    return [dataclasses.replace(clip, pixels_THWC=pixels) for clip, pixels in zip(shown, made, strict=True)]


def write_clips(folder: Path, clips: Sequence[Clip]) -> None:
    """Writes clips with their captions as a folder of data, unless it is there."""
    if (folder / "captions.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for number, clip in enumerate(clips):
        name = f"{number:05d}.gif"
        write_clip(folder / name, clip.pixels_THWC, fps=_FPS)
        lines.append(json.dumps({"file_name": name, "captions": clip.captions}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def old_prompts(count: int) -> list[PromptCase]:
    """Returns prompts of old colours, in combinations that no clip has; they repeat where there are fewer."""
    cases = [case for case in heldout_prompts(72) if case.objects[0].colour != NEW_COLOUR]
    return [cases[number % len(cases)] for number in range(count)]


def new_prompts(count: int) -> list[PromptCase]:
    """Returns prompts of the new colour: every shape, direction and ground in turn, then again."""
    cases = []
    for ground in BACKGROUNDS:
        for motion in DIRECTIONS:
            for shape in SHAPES:
                thing = Attributes(colour=NEW_COLOUR, shape=shape, motion=motion)
                prompt = f"a {NEW_COLOUR} {shape} moves {motion} on a {ground} background"
                cases.append(PromptCase(prompt=prompt, background=ground, objects=(thing,)))
    return [cases[number % len(cases)] for number in range(count)]


def _changed(config: str, changes: dict[str, Any]) -> Any:
    changed = load_config(config)
    changed.update_from_flattened_dict(changes)
    return changed


if __name__ == "__main__":
    run_command(main, _FLAGS)
