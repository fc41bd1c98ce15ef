"""Prompts about the drawn world that training never showed, each with what must be seen in a clip that follows it."""

import dataclasses

from sora_jax.core import rng as rng_lib
from sora_jax.core.errors import UserError
from sora_jax.data.sources.shapes_captions import SaidThing, phrase
from sora_jax.data.sources.shapes_world import (
    BACKGROUNDS,
    DIRECTIONS,
    PALETTE,
    SHAPES,
    Attributes,
    Scene,
    ShapesWorld,
    WorldConfig,
    describe,
    is_held_out,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptCase:
    """A prompt and what must be seen in a clip that follows it, save what it leaves open: there anything will do."""

    prompt: str
    background: str  # or ANY
    objects: tuple[Attributes, ...]
    left_open: tuple[str, ...] = ()  # names of attributes


ANY = "any"
# What prompts of people do not say of an object.
_LEFT_OPEN = (("colour",), ("motion",), ("colour", "motion"), ("shape",))
# Held-out combinations of an object, times backgrounds.
MOST_PROMPTS = 72


def case_of(scene: Scene) -> PromptCase:
    """Returns the prompt of a scene (its plain caption) with what must be seen."""
    objects = tuple(Attributes(colour=o.colour, shape=o.shape, motion=o.motion) for o in scene.objects)
    return PromptCase(prompt=describe(scene)[1], background=scene.background, objects=objects)


def heldout_prompts(num_prompts: int, *, seed: int = 0) -> list[PromptCase]:
    """Returns distinct prompts about one object, up to 72; every beginning of the list is balanced.

    Motions take turns, and so do backgrounds; the first 24 show each held-out combination once.
    Raises `UserError` for more than there are.
    """
    generator = rng_lib.generator(seed, "shapes/prompts")
    by_motion = []
    for motion in DIRECTIONS:
        kinds = [(c, s, motion) for c in PALETTE for s in SHAPES if is_held_out(c, s, motion)]
        by_motion.append([kinds[i] for i in generator.permutation(len(kinds))])
    kinds = [kind for turn in zip(*by_motion, strict=True) for kind in turn]
    grounds = tuple(BACKGROUNDS)
    most = len(kinds) * len(grounds)
    if not 1 <= num_prompts <= most:
        raise UserError(f"the world has 1 to {most} such prompts, asked for {num_prompts}")
    cases = []
    for number in range(num_prompts):
        colour, shape, motion = kinds[number % len(kinds)]
        background = grounds[(number + number // len(kinds)) % len(grounds)]
        kind = Attributes(colour=colour, shape=shape, motion=motion)
        prompt = f"{phrase(kind)} on a {background} background"
        cases.append(PromptCase(prompt=prompt, background=background, objects=(kind,)))
    return cases


def open_prompts(num_prompts: int, *, seed: int = 0) -> list[PromptCase]:
    """Returns prompts about one object that leave something open, as people do: colour, motion, both, or shape.

    These take turns, over the objects of `heldout_prompts`; no prompt names a ground.
    """
    cases = []
    for number, case in enumerate(heldout_prompts(num_prompts, seed=seed)):
        (kind,) = case.objects
        # Motions take turns of four, too: shifted after each, so that every one meets every other.
        left_open = _LEFT_OPEN[(number + number // 4) % len(_LEFT_OPEN)]
        said = {name: None if name in left_open else value for name, value in dataclasses.asdict(kind).items()}
        cases.append(
            dataclasses.replace(case, prompt=phrase(SaidThing(**said, size=None)), background=ANY, left_open=left_open)
        )
    return cases


def heldout_pair_prompts(num_prompts: int, *, seed: int = 0) -> list[PromptCase]:
    """Returns distinct prompts about two objects, both held out, of different colours and shapes, that never meet."""
    config = WorldConfig(
        seed=seed,
        num_clips=100 * num_prompts,
        sides=((64, 64),),
        frames=(2,),
        image_share=0.0,
        fps=(8.0,),
        max_objects=2,
        occluder=False,
        split="heldout",
    )
    world, cases = ShapesWorld(config), {}
    for index in range(len(world)):
        case = case_of(world.scene(index))
        if len(case.objects) == 2:
            cases[case.prompt] = case
        if len(cases) == num_prompts:
            return list(cases.values())
    raise UserError(f"the world has {len(cases)} prompts about two objects, asked for {num_prompts}")
