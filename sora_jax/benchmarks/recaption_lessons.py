"""How the captioner of the claim on new captions is taught (`benchmarks.recaption_claim`), and what it then writes."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from sora_jax.core.config_files import load_config
from sora_jax.data.shards.catalogue import read_catalogue
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment.captioners import load_captioner, make_describer
from sora_jax.experiment.run import rewrite_captions, run
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.stage_settings import AUTOENCODER, CAPTIONER
from sora_jax.train.workdir import Workdir

# Chances that a spoiled caption leaves an attribute out, and that it states a wrong one.
FAULTS = (0.5, 0.15)
# What the two captions that are written of each clip begin with: one is as it comes, one names the ground.
_BEGINNINGS = ("", "on")
_AT_ONCE = 512  # clips between two writes to the file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What is made, and of how much.

    Attributes:
      folder: Where the parts stay.
      config: File of autoencoder and generators.
      captioner: File of the captioner.
      clips: Of the generators.
      clean: Of the captioner.
      prompts: That are judged.
      draws: Samples of each.
      seed: Of what is trained; the clips stay the same.
    """

    folder: Path
    config: str
    captioner: str
    clips: int
    clean: int
    prompts: int
    draws: int
    seed: int

    @property
    def base(self) -> Workdir:
        """The run that has the autoencoder and the latents of all clips."""
        return Workdir(self.folder / "base")

    def config_of(self, file: str) -> Any:
        """Returns a config with the clips and prompts of the trial: one world, no faults, no samples on the way."""
        config = load_config(file)
        changes = {
            "seed": self.seed,
            "shapes.num_clips": self.clips,
            "shapes.seed": 0,
            "shapes.caption_faults": None,
            "log.samples_per_stage": 0,
            "log.validate_every": 0,
            "evaluation.prompts": self.prompts,
            "evaluation.draws": self.draws,
            "evaluation.tasks": 0,
        }
        config.update_from_flattened_dict(changes)
        return config

    def on_base(self, config: Any) -> Any:
        """Returns the config, which takes autoencoder and latents of the base now instead of making them."""
        config.run = tuple(name for name in config.run if config.stages[name].kind != AUTOENCODER)
        config.autoencoder.start_from = str(self.base.path)
        config.stages.prepare.start_from = str(self.base.path)
        return config


class Lesson(NamedTuple):
    """What the captioner is trained on, for how long.

    Attributes:
      folder: Of its run.
      captions: "clean" ones of a few clips; of all clips the "spoiled" ones, or those "written" after the last lesson.
      steps: Of the last stage, over those that the config has.
      rate: Its peak, over that of the config.
      hidden: As `captioner_loss.token_dropout`; without it errors of captions are learnt by heart.
    """

    folder: str
    captions: Literal["clean", "spoiled", "written"]
    steps: float
    rate: float
    hidden: float | None

    @property
    def table(self) -> str:
        """Name of the file with what is written after it."""
        return f"{self.folder}.jsonl"


# As in DALL-E 3 (Betker et al. 2023, section 3.1), a captioner of plentiful captions that are not good learns briefly
# from few that are. Here the few come first as well: they tell what to look at, which spoiled ones take long to do.
# What it writes then is right more often than the spoiled captions are, and from that it learns once more, seeing half
# of each clip, where it saw all of it as it wrote (noisy student, arXiv 1911.04252).
LESSONS = (
    Lesson(folder="captioner_first", captions="clean", steps=0.67, rate=1.0, hidden=0.5),
    Lesson(folder="captioner_spoiled", captions="spoiled", steps=1.33, rate=0.75, hidden=0.5),
    Lesson(folder="captioner_third", captions="clean", steps=0.133, rate=0.25, hidden=None),
    Lesson(folder="captioner_written", captions="written", steps=0.93, rate=0.75, hidden=0.5),
    Lesson(folder="captioner", captions="clean", steps=0.133, rate=0.25, hidden=None),
)


def train_captioner(trial: Trial) -> float:
    """Trains the captioner, lesson by lesson; returns how long, s, without what it wrote in between."""
    seconds, before = 0.0, None
    for lesson in LESSONS:
        if lesson.captions == "written" and before is not None:
            describe_all(trial, before)
        workdir = Workdir(trial.folder / lesson.folder)
        config = lesson_config(trial, lesson, before)
        if lesson.captions != "clean" and read_catalogue(workdir.prepared()) is None:
            rewrite_captions(config, workdir.path)
        run(config, workdir.path)
        seconds += sum(facts["seconds"] for facts in workdir.facts()["stages"].values() if facts["kind"] == CAPTIONER)
        before = lesson
    return seconds


def lesson_config(trial: Trial, lesson: Lesson, before: Lesson | None) -> Any:
    """Returns the config of a lesson: all stages of the captioner's, or the last one, from where `before` ended."""
    config = trial.on_base(trial.config_of(trial.captioner))
    # Nothing expands prompts here.
    config.captioner_loss.update(expand_share=None, token_dropout=lesson.hidden)
    if lesson.captions == "clean":
        config.shapes.num_clips = trial.clean
    if lesson.captions == "spoiled":
        config.shapes.caption_faults = FAULTS
    *_, name = config.run
    stage = config.stages[name]
    stage.steps = max(2, round(lesson.steps * stage.steps))
    if before is not None:
        if lesson.captions == "written":
            config.data.captions = str(trial.folder / before.table)
        config.run = ("prepare", name)
        stage.start_from = str(trial.folder / before.folder / "checkpoints" / name)
        stage.schedule.learning_rate *= lesson.rate
        stage.schedule.warmup_steps = min(stage.schedule.warmup_steps, stage.steps // 5)
    return config


def describe_all(trial: Trial, lesson: Lesson) -> int:
    """Returns how many clips were described after a lesson, each a line of its table; those there are left out."""
    opened, table = Workdir(trial.folder / lesson.folder), trial.folder / lesson.table
    settings = read_settings(ConfigDict(opened.config()))
    prepared = PreparedSet(trial.base.prepared())
    names, done = prepared.source_ids(), _lines_there(table)
    if done == len(names):
        return 0
    params, _, _ = load_captioner(opened, settings)
    describer = make_describer(settings, rows=settings.packing.rows)
    with table.open("a") as file:
        for start in range(done, len(names), _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, len(names)))
            clips = [prepared[number] for number in numbers]
            columns = [
                [f"{begins} {one.text}".strip() for one in describer(params, clips, prefix=begins)]
                for begins in _BEGINNINGS
            ]
            for number, *captions in zip(numbers, *columns, strict=True):
                file.write(json.dumps({"file": names[number], "captions": captions}) + "\n")
            file.flush()
            os.fsync(file.fileno())
            print(f"{numbers.stop} of {len(names)} clips are described", flush=True)
    return len(names) - done


def _lines_there(table: Path) -> int:
    """Returns how many whole lines a file has, after cutting off half of one."""
    if not table.exists():
        return 0
    text = table.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        table.write_bytes(whole)
    return whole.count(b"\n")
