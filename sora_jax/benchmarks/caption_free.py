"""Asks what clips without captions teach a generator that is told of each by its own embedding.

  python -m sora_jax.benchmarks.caption_free --workdir=runs/caption_free --json=FILE
  python -m sora_jax.benchmarks.caption_free --workdir=runs/caption_free --json=FILE --base=runs/base --steps=0.25

On the drawn world. A tenth of the clips has captions, and a captioner is trained on these alone; its embedding of each
clip stands beside its latent (docs/captions.md). Generators are trained for equal steps on the captioned clips alone
(`few`), on all clips of which the others have no caption (`empty`), on all with their embeddings (`embedded`), and on
all with captions (`all`). The oracle judges held-out combinations, from the same noise: by the text alone, of
`embedded` also with the captioner's embedding of the text beside it (`by_text`), moved by the mean difference of
embeddings of clips and of their captions (`by_moved_text`), or in the place of the text (`alone`), and of embeddings of
held-out clips without a text (`like`). One autoencoder and one set of latents serve all. The parts stay in --workdir,
and those that are made are not made again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.benchmarks.trials import on_base, trial_config
from sora_jax.core.commands import Flags, run_command
from sora_jax.data.shards.catalogue import read_catalogue
from sora_jax.data.shards.prepared import PreparedSet, ShardWriter
from sora_jax.data.sources.shapes_prompts import PromptCase, case_of, heldout_prompts
from sora_jax.data.sources.shapes_world import ShapesWorld, render
from sora_jax.evaluation.evaluator import judge_clips
from sora_jax.experiment.embeddings import ClipEmbedder, embed_prepared
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.run import run
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.stage_settings import TEXT_TO_VIDEO
from sora_jax.generate.canvas import Canvas
from sora_jax.generate.captioning import EncodedClip
from sora_jax.preparation.encode import WHOLE
from sora_jax.train.workdir import Workdir
from sora_jax.video import shapes

_FLAGS = Flags()
_WORKDIR = _FLAGS.workdir("Where the parts stay.")
_JSON = _FLAGS.string("json", None, "Where to write the figures.")
_CONFIG = _FLAGS.string("config", "configs/base.py", "Of autoencoder and generators.")
_CAPTIONER = _FLAGS.string("captioner", "configs/captions.py", "Of the captioner, with the same autoencoder.")
_BASE = _FLAGS.path(
    "base", None, "A run of that config whose autoencoder and latents are taken; default: it makes one."
)
_CLIPS = _FLAGS.integer("clips", 4096, "Clips of the generators.", least=16)
_CAPTIONED = _FLAGS.number("captioned", 0.1, "Share of them, the first ones, that have captions.", least=0.0)
_STEPS = _FLAGS.number("steps", 1.0, "Of the generators, as a share of those of the config.", least=0.0)
_PROMPTS = _FLAGS.integer("prompts", 72, "Held-out prompts.", least=1)
_DRAWS = _FLAGS.integer("draws", 6, "Samples of each.", least=1)

_SCORES = ("colour", "motion", "shape", "all")
# As of evaluations of a run, so that their samples have the noise of these.
_NOISE_SEED = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionFreeTrial:
    """What is made, and of how much.

    Attributes:
      folder: Where the parts stay.
      config: File of autoencoder and generators.
      captioner: File of the captioner.
      base: Workdir with autoencoder and latents; None: one is made.
      clips: Of the generators.
      captioned: Of these, the first, have captions.
      steps: Share of the config's.
      prompts: That are judged.
      draws: Samples of each.
    """

    folder: Path
    config: str
    captioner: str
    base: str | None
    clips: int
    captioned: int
    steps: float
    prompts: int
    draws: int


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    trial = CaptionFreeTrial(
        folder=Path(_WORKDIR.value),
        config=_CONFIG.value,
        captioner=_CAPTIONER.value,
        base=_BASE.value,
        clips=_CLIPS.value,
        captioned=max(1, round(_CAPTIONED.value * _CLIPS.value)),
        steps=_STEPS.value,
        prompts=_PROMPTS.value,
        draws=_DRAWS.value,
    )
    publish(figures_of(trial), _JSON.value)


def figures_of(trial: CaptionFreeTrial) -> list[Figure]:
    """Returns how prompts are followed by what was trained in which way."""
    if trial.base is None:
        run(_config(trial, trial.config), _base(trial).path, until="prepare")
    captioner = _train_captioner(trial)
    width = read_settings(captioner.config()).captioner.embedding
    told = {"transformer.embedding": width, "sampling.captioner": str(captioner.path)}
    found = {
        "few": _train_generator(trial, "few", {"shapes.num_clips": trial.captioned}),
        "embedded": _train_generator(trial, "embedded", told, withheld=True),
    }
    found |= judge_embedded(trial, captioner)
    found["all"] = _train_generator(trial, "all", {})
    found["empty"] = _train_generator(trial, "empty", {}, withheld=True)
    retrieval = captioner.read_json("evaluation.json")["captions"]["retrieval_r1"]
    return [
        *_claim(found),
        *_following(found, samples=trial.prompts * trial.draws),
        Figure(name="retrieval_r1", value=retrieval, target=None, meaning="held-out clips whose caption comes first"),
    ]


def _claim(found: Mapping[str, Mapping[str, float]]) -> list[Figure]:
    """Returns what embeddings bring, by the best way to ask for a text."""
    ways = {name: found[name] for name in ("embedded", "by_text", "by_moved_text", "alone")}
    best = max(ways, key=lambda name: ways[name]["all"])
    figures = [
        Figure(
            name=f"gain_{score}",
            value=found[best][score] - found["few"][score],
            target="at least 0.15",
            meaning=f"share with the {score} right: {best} over few",
        )
        for score in ("colour", "motion")
    ]
    whole = found["all"]["all"]
    ratio = found[best]["all"] / whole if whole else 0.0
    return [
        *figures,
        Figure(name="of_all", value=ratio, target="at least 0.9", meaning=f"following: {best}, as a ratio to all"),
    ]


def _following(found: Mapping[str, Mapping[str, float]], *, samples: int) -> list[Figure]:
    meaning = f"share of {samples} samples that have it right"
    return [
        Figure(name=f"{score}_{name}", value=scores[score], target=None, meaning=meaning)
        for name, scores in found.items()
        for score in _SCORES
    ]


def _train_captioner(trial: CaptionFreeTrial) -> Workdir:
    """Returns the run of the captioner of the captioned clips, trained where it is not yet."""
    config = _config(trial, trial.captioner)
    config.shapes.num_clips = trial.captioned
    workdir = Workdir(trial.folder / "captioner")
    run(on_base(config, _base(trial).path), workdir.path)
    return workdir


def _train_generator(
    trial: CaptionFreeTrial, name: str, changes: Mapping[str, Any], *, withheld: bool = False
) -> Mapping[str, float]:
    """Returns how far a generator follows its prompts by the text alone.

    Args:
      trial: What is made.
      name: Of its folder.
      changes: Of the config.
      withheld: Whether clips after the captioned ones have no caption.
    """
    config, workdir = _config(trial, trial.config), Workdir(trial.folder / name)
    config.update_from_flattened_dict(dict(changes))
    for stage in read_settings(config).stages_of(TEXT_TO_VIDEO):
        config.stages[stage].steps = max(1, round(trial.steps * config.stages[stage].steps))
    config = on_base(config, _base(trial).path)
    if withheld:
        config.stages.prepare.start_from = None
        _withhold(trial, workdir)
    if config.transformer.embedding is not None:
        run(config, workdir.path, until="prepare")
        embed_prepared(config, workdir.path, config.sampling.captioner)
    run(config, workdir.path)
    return workdir.read_json("evaluation.json")["shapes"]


def _withhold(trial: CaptionFreeTrial, workdir: Workdir) -> None:
    """Writes the latents that are there once more, without the captions of those after the captioned ones."""
    if read_catalogue(workdir.prepared()) is not None:
        return
    settings = read_settings(_config(trial, trial.config))
    world, there = _world(trial), PreparedSet(_base(trial).prepared())
    captioned = {world.source_id(index) for index in range(trial.captioned)}
    made = {"header": there.header, "tokenizer": settings.text_encoder.tokenizer, "name": WHOLE.name}
    with ShardWriter(workdir.prepared(), **made) as writer:
        for number in range(len(there)):
            sample = there.raw(number)
            if (sample.source_id, sample.origin) in writer.done:
                continue
            bare = dataclasses.replace(sample, captions=(), weights=None)
            writer.add(sample if sample.source_id in captioned else bare)


def judge_embedded(trial: CaptionFreeTrial, captioner: Workdir) -> dict[str, Mapping[str, float]]:
    """Returns how the generator that is told embeddings follows embeddings of prompts, and of clips."""
    workdir = Workdir(trial.folder / "embedded")
    settings = read_settings(workdir.config())
    models = RunModels(workdir, settings)
    embedder = ClipEmbedder(captioner.path, autoencoder=models.codec.fingerprint())
    cases = heldout_prompts(trial.prompts) * trial.draws
    of_text_NE = embedder.of_texts([case.prompt for case in cases])
    moved_NE = _unit(of_text_NE + _between(trial, embedder))
    found = {
        "by_text": _judged(models, cases, of_text_NE),
        "by_moved_text": _judged(models, cases, moved_NE),
        "alone": _judged(models, cases, moved_NE, silent=True),
    }
    sources = _moving(trial, len(cases))
    like_NE = embedder.of_clips(_encoded(models, sources))
    return found | {"like": _judged(models, [case_of(scene) for scene in sources], like_NE, silent=True)}


def _judged(
    models: RunModels, cases: Sequence[PromptCase], embedding_NE: np.ndarray, *, silent: bool = False
) -> Mapping[str, float]:
    """Returns the oracle's scores of what is made of embeddings, beside the prompts of cases or in their place."""
    settings, sampling = models.settings, models.settings.sampling
    size = (sampling.frames, *sampling.size)
    grid = shapes.clip_token_grid(size, stride=settings.stride, patch=settings.transformer.patch)
    canvases = [
        Canvas(
            prompt="" if silent else case.prompt,
            grid=grid,
            fps=sampling.fps,
            seed=_NOISE_SEED + number,
            embedding_E=embedding_E,
        )
        for number, (case, embedding_E) in enumerate(zip(cases, embedding_NE, strict=True))
    ]
    return judge_clips(cases, models.sampler()(models.params, canvases)).scores


def _between(trial: CaptionFreeTrial, embedder: ClipEmbedder) -> np.ndarray:
    """Returns the mean embedding of captioned clips less that of their captions that tell the ground, (E,)."""
    there = PreparedSet(Workdir(trial.folder / "few").prepared())
    clips = [there[number] for number in range(len(there))]
    of_clips_NE, of_texts_NE = embedder.of_clips(clips), embedder.of_texts([clip.captions[1] for clip in clips])
    return of_clips_NE.mean(axis=0) - of_texts_NE.mean(axis=0)


def _unit(vector_NE: np.ndarray) -> np.ndarray:
    return (vector_NE / np.linalg.norm(vector_NE, axis=-1, keepdims=True)).astype(np.float32)


def _moving(trial: CaptionFreeTrial, count: int) -> list[Any]:
    """Returns the scenes of held-out clips of the size and the length of samples."""
    settings = read_settings(_config(trial, trial.config))
    sampling, drawn = settings.sampling, settings.shapes.world(seed=0, split="heldout", num_clips=count)
    of_samples = {"sides": (sampling.size,), "frames": (sampling.frames,), "fps": (sampling.fps,), "image_share": 0.0}
    world = ShapesWorld(dataclasses.replace(drawn, **of_samples))
    return [world.scene(number) for number in range(count)]


def _encoded(models: RunModels, scenes: Sequence[Any]) -> list[EncodedClip]:
    """Returns the clips of scenes as the captioner reads them."""
    return [EncodedClip(latent_THWC=models.encode(render(scene)), fps=scene.fps) for scene in scenes]


def _config(trial: CaptionFreeTrial, file: str) -> Any:
    return trial_config(file, clips=trial.clips, prompts=trial.prompts, draws=trial.draws)


def _base(trial: CaptionFreeTrial) -> Workdir:
    return Workdir(trial.folder / "base" if trial.base is None else trial.base)


def _world(trial: CaptionFreeTrial) -> ShapesWorld:
    return ShapesWorld(read_settings(_config(trial, trial.config)).shapes.world(seed=0, split="train"))


if __name__ == "__main__":
    run_command(main, _FLAGS)
