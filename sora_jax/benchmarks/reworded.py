"""How runs of the drawn world follow prompts in words that no caption has, against their own words.

  python -m sora_jax.benchmarks.reworded --workdir=runs/base --workdir=runs/minilm --json=FILE

A text encoder that is trained with the model knows the words of the captions alone; one that has read other texts may
know what the rest mean. Each prompt is sampled both ways from the same noise, and the oracle reads what is seen.
"""

from collections.abc import Sequence
from pathlib import Path

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.data.sources.shapes_prompts import MOST_PROMPTS, PromptCase, heldout_prompts
from sora_jax.evaluation.evaluator import judge_clips
from sora_jax.experiment.session import Session, open_session

_FLAGS = Flags()
_JSON = _FLAGS.figures()
_WORKDIRS = _FLAGS.paths("workdir", "Run of the drawn world; given several times, these are compared.")
_PROMPTS = _FLAGS.integer("prompts", MOST_PROMPTS, f"Held-out prompts, at most {MOST_PROMPTS}.", least=1)
_SEED = _FLAGS.integer("seed", 1_000, "Of the noise of the first prompt.", least=0)

# Two words for each of the captions', none of which is in a caption of the drawn world.
COLOUR_WORDS = {
    "red": ("crimson", "scarlet"),
    "yellow": ("golden", "lemon"),
    "green": ("emerald", "grassy"),
    "cyan": ("turquoise", "aqua"),
    "blue": ("navy", "sapphire"),
    "purple": ("magenta", "violet"),
}
SHAPE_WORDS = {"circle": ("disc", "round spot"), "square": ("box", "block"), "triangle": ("wedge", "pyramid")}
# Of a direction without another word the verb is new.
MOTION_WORDS = {
    "left": ("drifts to the left", "glides leftwards"),
    "right": ("drifts to the right", "glides rightwards"),
    "up": ("rises", "climbs upwards"),
    "down": ("sinks", "falls downwards"),
}
GROUND_WORDS = {"dark": ("black", "gloomy"), "grey": ("gray", "ashen"), "light": ("pale", "bright")}


def in_other_words(case: PromptCase, turn: int) -> PromptCase:
    """Returns the case of a prompt about one moving object in the words of one of two turns."""
    (thing,) = case.objects
    assert thing.motion is not None
    colour, shape, motion = COLOUR_WORDS[thing.colour], SHAPE_WORDS[thing.shape], MOTION_WORDS[thing.motion]
    way = turn % 2
    prompt = f"a {colour[way]} {shape[way]} {motion[way]} against a {GROUND_WORDS[case.background][way]} backdrop"
    return PromptCase(prompt=prompt, background=case.background, objects=case.objects)


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    workdirs = _WORKDIRS.value
    if not workdirs:
        raise UserError("no run to ask: pass --workdir=DIR, once for each")
    names = [Path(workdir).name for workdir in workdirs]
    if len(set(names)) < len(names):
        raise UserError(f"figures are named by the last part of each workdir, and {', '.join(names)} are not distinct")
    cases = heldout_prompts(_PROMPTS.value)
    figures = []
    for name, workdir in zip(names, workdirs, strict=True):
        figures += figures_of(name, open_session(workdir), cases, seed=_SEED.value)
    publish(figures, _JSON.value)


def figures_of(name: str, run: Session, cases: Sequence[PromptCase], *, seed: int) -> list[Figure]:
    """Returns how a run follows prompts as captions are written, and reworded; noise is of `seed` and those after."""
    reworded = [in_other_words(case, number) for number, case in enumerate(cases)]
    seeds = [seed + number for number in range(len(cases))]
    figures = []
    for words, asked in (("captions", cases), ("reworded", reworded)):
        clips = run.sample([case.prompt for case in asked], seed=seeds)
        scores = judge_clips(asked, clips).scores
        for score, target in (("colour", "at least 0.9"), ("motion", "at least 0.9"), ("shape", None)):
            figures.append(
                Figure(
                    name=f"{name}_{words}_{score}",
                    value=scores[score],
                    target=target,
                    meaning=f"share of {len(cases)} prompts, in words of {words}, whose {score} is seen",
                )
            )
    return figures


if __name__ == "__main__":
    run_command(main, _FLAGS)
