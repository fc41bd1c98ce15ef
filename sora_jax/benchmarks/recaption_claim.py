"""Asks whether a generator follows its prompts better after its clips are captioned anew by a model that describes.

  python -m sora_jax.benchmarks.recaption_claim --workdir=runs/claim --json=FILE
  python -m sora_jax.benchmarks.recaption_claim --workdir=runs/claim --json=FILE --mix

The claim of the report, on the drawn world. Of its captions half of the attributes are missing and 15 % are wrong
(`shapes.caption_faults`). A captioner that is trained on these, on few clips with clean ones, and on what it then
writes itself (`benchmarks.recaption_lessons`), describes all, and generators are trained for equal steps on the spoiled
captions, on the new ones and on clean ones; with --mix also on both kinds of captions, in three shares. One autoencoder
and one set of latents serve them all, under captions of
their own (`prepare --captions_only`). The oracle judges held-out combinations, from the same noise. The parts stay in
--workdir, and those that are made are not made again.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.benchmarks.recaption_lessons import FAULTS, LESSONS, Trial, describe_all, train_captioner
from sora_jax.core.commands import Flags, run_command
from sora_jax.data.shards.catalogue import read_catalogue
from sora_jax.data.sources.shapes_world import ShapesWorld
from sora_jax.evaluation.caption_reader import CaptionAccuracy, score_captions
from sora_jax.experiment.run import rewrite_captions, run
from sora_jax.experiment.settings import read_settings
from sora_jax.train.workdir import Workdir

_FLAGS = Flags()
_WORKDIR = _FLAGS.path("workdir", "runs/claim", "Where the parts stay.")
_JSON = _FLAGS.figures()
_CONFIG = _FLAGS.string("config", "configs/base.py", "Of autoencoder and generators.")
_CAPTIONER = _FLAGS.string("captioner", "configs/captions.py", "Of the captioner, with the same autoencoder.")
_CLIPS = _FLAGS.integer("clips", 8192, "Clips of the generators.", least=16)
_CLEAN = _FLAGS.integer("clean", 256, "Of these, the first, with clean captions, for the captioner.", least=16)
_PROMPTS = _FLAGS.integer("prompts", 72, "Held-out prompts.", least=1)
_DRAWS = _FLAGS.integer("draws", 6, "Samples of each.", least=1)
_SEED = _FLAGS.integer("seed", 0, "Of all that is trained; --workdir is another for each.", least=0)
_MIX = _FLAGS.switch("mix", False, "Also train on spoiled and new captions, the new ones in shares of 50, 80 and 95 %.")

# Of the new captions among all, beside none (spoiled) and all of them (recaptioned).
SHARES = (0.5, 0.8, 0.95)
_SCORES = ("colour", "shape", "motion")


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    trial = Trial(
        folder=Path(_WORKDIR.value),
        config=_CONFIG.value,
        captioner=_CAPTIONER.value,
        clips=_CLIPS.value,
        clean=min(_CLEAN.value, _CLIPS.value),
        prompts=_PROMPTS.value,
        draws=_DRAWS.value,
        seed=_SEED.value,
    )
    publish(figures_of(trial, shares=SHARES if _MIX.value else ()), _JSON.value)


def figures_of(trial: Trial, *, shares: Sequence[float]) -> list[Figure]:
    """Returns what new captions bring, and how right they are; `shares` of them are mixed with spoiled ones."""
    prepare_base(trial)
    seconds = train_captioner(trial)
    began = time.monotonic()
    written, table = describe_all(trial, LESSONS[-1]), trial.folder / LESSONS[-1].table
    rate = written / (time.monotonic() - began) if written else None
    runs: dict[str, dict[str, Any]] = {
        "clean": {},
        "recaptioned": {"data.captions": str(table)},
        "spoiled": {"shapes.caption_faults": FAULTS},
    }
    for share in shares:
        mixed = trial.folder / f"captions_{share:.0%}.jsonl"
        write_mix(trial, table, mixed, share=share)
        runs[_mix_name(share)] = {"data.captions": str(mixed)}
    found = {name: train_generator(trial, name, changes) for name, changes in runs.items()}
    return [
        *_claim(found, samples=trial.prompts * trial.draws),
        *_accuracies(trial, table),
        Figure(name="captioner_seconds", value=seconds, target="at most 180", meaning="that it was trained for, s"),
        *([] if rate is None else [Figure(name="rate", value=rate, target=None, meaning="clips described, 1/s")]),
    ]


def _mix_name(share: float) -> str:
    return f"mix_{round(100 * share):03d}"


def _claim(found: Mapping[str, Mapping[str, float]], *, samples: int) -> list[Figure]:
    """Returns the figures of the generators, by the name of what they were trained on."""
    following = {name: scores["all"] for name, scores in found.items()}
    figures = [
        Figure(
            name="gain",
            value=following["recaptioned"] - following["spoiled"],
            target="at least 0.15",
            meaning="following: recaptioned over spoiled",
        ),
        Figure(
            name="of_clean",
            value=following["recaptioned"] / following["clean"] if following["clean"] else 0.0,
            target="at least 0.9",
            meaning="following: recaptioned, as a ratio to clean",
        ),
        Figure(
            name="spoiled_of_clean",
            value=following["spoiled"] / following["clean"] if following["clean"] else 0.0,
            target=None,
            meaning="following: spoiled, as a ratio to clean",
        ),
    ]
    for name, scores in found.items():
        figures.append(
            Figure(
                name=f"following_{name}",
                value=following[name],
                target=None,
                meaning=f"share of {samples} samples with colour, shape and motion right",
            )
        )
        figures += [
            Figure(name=f"{one}_{name}", value=scores[one], target=None, meaning=f"share with the {one} right")
            for one in _SCORES
        ]
    return figures


def prepare_base(trial: Trial) -> None:
    """Trains the autoencoder and encodes all clips, where that is not done."""
    run(trial.config_of(trial.config), trial.base.path, until="prepare")


def write_mix(trial: Trial, table: Path, mixed: Path, *, share: float) -> None:
    """Writes spoiled captions and those of a table side by side; a `share`, over 0 and below 1, is of the table's."""
    world = _world(trial, spoiled=True)
    lines: list[str] = []
    for index, new in enumerate(_new_captions(table)):
        old = world.captions(index)
        weights = [(1 - share) / len(old)] * len(old) + [share / len(new)] * len(new)
        lines.append(json.dumps({"file": world.source_id(index), "captions": [*old, *new], "weights": weights}))
    mixed.write_text("\n".join(lines) + "\n")


def train_generator(trial: Trial, name: str, changes: Mapping[str, Any]) -> dict[str, float]:
    """Returns how far a generator follows its prompts, trained under captions that `changes` of the config choose."""
    config = trial.config_of(trial.config)
    config.update_from_flattened_dict(dict(changes))
    config, workdir = trial.on_base(config), Workdir(trial.folder / name)
    if changes and read_catalogue(workdir.prepared()) is None:
        rewrite_captions(config, workdir.path)
    run(config, workdir.path)
    return workdir.read_json("evaluation.json")["shapes"]


def _world(trial: Trial, *, spoiled: bool) -> ShapesWorld:
    shapes = read_settings(trial.config_of(trial.config)).shapes
    world = shapes.world(seed=0, split="train")
    return ShapesWorld(dataclasses.replace(world, caption_faults=FAULTS if spoiled else None))


def _new_captions(table: Path) -> Iterator[list[str]]:
    """Yields the captions of each clip, in order."""
    with table.open() as file:
        for line in file:
            yield json.loads(line)["captions"]


def _accuracies(trial: Trial, table: Path) -> list[Figure]:
    """Returns how right the spoiled captions are and the new ones, each the one that names the ground."""
    spoiled = _world(trial, spoiled=True)
    scenes = [spoiled.scene(index) for index in range(len(spoiled))]
    old = [spoiled.captions(index)[1] for index in range(len(spoiled))]
    new = [captions[-1] for captions in _new_captions(table)]
    found: dict[str, CaptionAccuracy] = {
        "spoiled": score_captions(zip(scenes, old, strict=True)),
        "recaptioned": score_captions(zip(scenes, new, strict=True)),
    }
    figures = []
    for name, accuracy in found.items():
        means = {"precision": accuracy.precision, "recall": accuracy.recall}
        figures += [
            Figure(
                name=f"captions_{what}_{name}",
                value=sum(by.get(one, 0.0) for one in _SCORES) / len(_SCORES),
                target=None,
                meaning=f"{what} of colour, shape and motion in captions, mean",
            )
            for what, by in means.items()
        ]
        whole = "share of captions with nothing wrong or left out"
        figures.append(Figure(name=f"captions_exact_{name}", value=accuracy.exact, target=None, meaning=whole))
    return figures


if __name__ == "__main__":
    run_command(main, _FLAGS)
