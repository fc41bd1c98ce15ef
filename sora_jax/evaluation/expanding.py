"""Do prompts that were written out keep what they said, are they followed as well as long ones, and as varied as data.

Letters: V values of an attribute, D draws.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sora_jax.core import rng
from sora_jax.data.sources.shapes_prompts import PromptCase
from sora_jax.data.sources.shapes_world import BACKGROUNDS, MOTIONS, RADII, Attributes, Scene
from sora_jax.evaluation.caption_reader import CaptionContent, parse_caption
from sora_jax.evaluation.evaluator import Judged
from sora_jax.generate.expand import Expansion

# Prompts as users type them; the second kind leaves the motion open.
_TERSE = ("{colour} {shape} {motion}", "{shape}, {colour}, {motion}")
_BRIEF = ("{colour} {shape}", "{shape}, {colour}")
_STATED = ("colour", "shape", "motion")
_UNSTATED = {"background": tuple(BACKGROUNDS), "size": tuple(RADII), "motion": MOTIONS}
_DRAWS, _RARE = 2000, 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpandScores:
    """What was found, fit for JSON; what became of each prompt; and, by kind of prompt, what was made of it.

    The scores are described at `judge_expansion`.
    """

    scores: dict[str, Any]
    expansions: list[Expansion]
    judged: dict[str, Judged]


def terse_cases(cases: Sequence[PromptCase]) -> list[PromptCase]:
    """Returns cases of one object that ask for the same in fewest words: "red circle right", "circle, red, right"."""
    return [_typed(case, _TERSE[number % len(_TERSE)]) for number, case in enumerate(cases)]


def brief_cases(cases: Sequence[PromptCase]) -> list[PromptCase]:
    """Returns cases of one object that leave its motion open: "red circle", "circle, red"."""
    found = []
    for number, case in enumerate(cases):
        (kind,) = case.objects
        still_open = dataclasses.replace(case, objects=(dataclasses.replace(kind, motion=None),))
        found.append(_typed(still_open, _BRIEF[number % len(_BRIEF)]))
    return found


def _typed(case: PromptCase, form: str) -> PromptCase:
    (kind,) = case.objects
    return dataclasses.replace(case, prompt=form.format(**dataclasses.asdict(kind)))


def judge_expansion(
    expand: Callable[[Sequence[str], Sequence[int]], list[Expansion]],
    follow: Callable[[Sequence[PromptCase]], Judged],
    cases: Sequence[PromptCase],
    data: Sequence[Scene],
    *,
    seed: int,
) -> ExpandScores:
    """Returns what becomes of short prompts, and how far what is made of them follows.

    Every case is asked for in the fewest words, once with its motion and once without. A grammar reads what becomes of
    these (`evaluation.caption_reader`; a prompt that stays keeps all): `kept` and `contradicted` are shares of the
    attributes that were asked for, `added` the share of texts that name more than one object, `fallback` the share of
    prompts that stay, as no text passed. What is made of the terse prompts with their motion is judged by the oracle:
    `..._following` is the share of videos with all that was asked for, of terse prompts that were written out
    (`terse`), of the same as they are (`unexpanded`), and of the full prompts of the same scenes (`detailed`); all
    shares stand beside.
    `distance_...` is how far what was written of an attribute that the prompt leaves open is from what clips have: half
    of the sum of differences of shares, of the texts that say it; `..._by_chance` is what 95 of 100 draws of as many
    clips stay under. `spread` has the shares.

    Args:
      expand: (prompts, the seed of each) -> what became of them.
      follow: Makes what is asked for, and judges it; the same noise for the n-th of any cases.
      cases: Each of one object that moves.
      data: Scenes that were trained on, some of one object that moves.
      seed: Of what is drawn.
    """
    terse, brief = terse_cases(cases), brief_cases(cases)
    asked = [*terse, *brief]
    found = expand([case.prompt for case in asked], [seed + number for number in range(len(asked))])
    longer = [dataclasses.replace(case, prompt=one.text) for case, one in zip(terse, found, strict=False)]
    judged = {"terse": follow(longer), "unexpanded": follow(terse), "detailed": follow(cases)}
    scores = {
        "prompts": len(asked),
        **_told(asked, found),
        "fallback": float(np.mean([bool(one.faults) for one in found])),
        **{f"{name}_following": one.scores["all"] for name, one in judged.items()},
        **_spread(asked, found, data, seed=seed),
        **{name: one.scores for name, one in judged.items()},
    }
    return ExpandScores(scores=scores, expansions=found, judged=judged)


def _told(cases: Sequence[PromptCase], found: Sequence[Expansion]) -> dict[str, float]:
    """Returns the shares of attributes that are kept and contradicted, and of texts with further objects."""
    counts = np.sum([count_kept(case, one.text) for case, one in zip(cases, found, strict=True)], axis=0)
    asked, kept, contradicted = counts.tolist()
    told = [parse_caption(one.text) for one in found]
    added = [one is not None and len(one.objects) > 1 for one in told]
    return {"kept": kept / asked, "contradicted": contradicted / asked, "added": float(np.mean(added))}


def count_kept(case: PromptCase, text: str) -> tuple[int, int, int]:
    """Returns how many attributes a case asks for, and how many of these a text keeps and contradicts.

    The prompt itself keeps all; what is no sentence of the world contradicts all. Of several objects the one that keeps
    most counts.
    """
    (kind,) = case.objects
    asked = {name: value for name in _STATED if (value := getattr(kind, name)) is not None}
    told = parse_caption(text)
    if text == case.prompt:
        return len(asked), len(asked), 0
    if told is None:
        return len(asked), 0, len(asked)
    said = max(([getattr(one, name) for name in asked] for one in told.objects), key=lambda one: _equal(one, asked))
    kept = _equal(said, asked)
    return len(asked), kept, sum(value is not None for value in said) - kept


def _equal(said: Sequence[str | None], asked: dict[str, str]) -> int:
    return sum(a == b for a, b in zip(said, asked.values(), strict=True))


def _spread(
    cases: Sequence[PromptCase], found: Sequence[Expansion], data: Sequence[Scene], *, seed: int
) -> dict[str, Any]:
    """Returns how far the shares of unstated attributes are from those of clips, by attribute, and all shares."""
    scores: dict[str, Any] = {}
    records: list[dict[str, Any]] = []
    written = [(case.objects[0], _new_content(one)) for case, one in zip(cases, found, strict=True)]
    clips = _count(data)
    for name, values in _UNSTATED.items():
        told = [(kind, value) for kind, content in written if (value := _open_value(name, kind, content)) is not None]
        if not told:
            continue
        share_V = np.array([sum(value == one for _, value in told) for one in values]) / len(told)
        true_V = np.mean([_shares(clips, name, kind) for kind, _ in told], axis=0)
        generator = rng.generator(seed, "shares by chance")
        chance_DV = generator.multinomial(len(told), true_V, size=_DRAWS) / len(told)
        scores[f"distance_{name}"] = _distance(share_V, true_V).item()
        scores[f"distance_{name}_by_chance"] = float(np.quantile(_distance(chance_DV, true_V), _RARE))
        records += [
            {"attribute": name, "value": value, "texts": len(told), "written": float(ours), "clips": float(theirs)}
            for value, ours, theirs in zip(values, share_V, true_V, strict=True)
        ]
    return {**scores, "spread": records}


def _distance(share_V: np.ndarray, true_V: np.ndarray) -> np.ndarray:
    return np.abs(share_V - true_V).sum(axis=-1) / 2


def _new_content(one: Expansion) -> CaptionContent | None:
    """Returns what was written says; None of a prompt that stayed, and of what is no sentence about one object."""
    told = None if one.text == one.prompt else parse_caption(one.text)
    return None if told is None or len(told.objects) != 1 else told


def _open_value(name: str, kind: Attributes, content: CaptionContent | None) -> str | None:
    """Returns what is said of an attribute that the prompt leaves open; None of others."""
    if content is None or (name == "motion" and kind.motion is not None):
        return None
    return content.background if name == "background" else getattr(content.objects[0], name)


def _count(data: Sequence[Scene]) -> dict[str, collections.Counter[tuple[str, str, str]]]:
    """Returns by attribute how many clips of one object that moves, or rests, have a colour, a shape and its value."""
    found = {name: collections.Counter[tuple[str, str, str]]() for name in _UNSTATED}
    for scene in data:
        thing = scene.objects[0]
        if len(scene.objects) > 1 or thing.motion is None:
            continue
        for name, value in {"background": scene.background, "size": thing.size, "motion": thing.motion}.items():
            found[name][thing.colour, thing.shape, str(value)] += 1
    return found


def _shares(clips: dict[str, collections.Counter[tuple[str, str, str]]], name: str, kind: Attributes) -> np.ndarray:
    """Returns the shares of the values of an attribute among clips, of motion among those of the same thing."""
    values, counts = _UNSTATED[name], clips[name]
    alike = [counts[kind.colour, kind.shape, value] for value in values]
    if name == "motion" and any(alike):
        return np.array(alike) / sum(alike)
    every = [sum(number for (_, _, one), number in counts.items() if one == value) for value in values]
    return np.array(every) / sum(every)
