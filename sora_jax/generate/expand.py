"""Short prompts written out in the form of the captions that a model was trained on, without losing what they say."""

import dataclasses
from collections.abc import Callable, Sequence

import jax

from sora_jax.core.tree import Params
from sora_jax.data.packing.expansion_pairs import ask_to_expand
from sora_jax.generate.captioning import Describer

# Tries after the first.
_RETRIES = 3

# (prompts, the seed of each, how often they were tried before) -> a longer text of each; empty where there is none.
Expander = Callable[[Sequence[str], Sequence[int], int], Sequence[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expansion:
    """What became of a prompt.

    Attributes:
      prompt: As it was.
      text: What is to be shown: longer, or the prompt itself.
      faults: What was wrong with the last try where the prompt stays, in words; else empty.
    """

    prompt: str
    text: str
    faults: tuple[str, ...] = ()


def expand_prompts(
    expander: Expander,
    prompts: Sequence[str],
    seeds: Sequence[int],
    find_losses: Callable[[str, str], Sequence[str]],
) -> list[Expansion]:
    """Returns what becomes of each prompt, in order: a text without faults out of four tries, or else itself.

    Args:
      expander: Writes longer texts.
      prompts: Each not empty.
      seeds: Of what is drawn, one of each prompt.
      find_losses: (prompt, longer text) -> what is wrong with it, in words; empty where nothing is.
    """
    found = {number: Expansion(prompt=prompt, text=prompt) for number, prompt in enumerate(prompts)}
    open_ones = list(found)
    for attempt in range(1 + _RETRIES):
        if not open_ones:
            break
        texts = expander([prompts[number] for number in open_ones], [seeds[number] for number in open_ones], attempt)
        for number, text in zip(open_ones, texts, strict=True):
            prompt = prompts[number]
            faults = tuple(find_losses(prompt, text)) if text else ("nothing whole was written",)
            found[number] = Expansion(prompt=prompt, text=prompt if faults else text, faults=faults)
        open_ones = [number for number in open_ones if found[number].faults]
    return list(found.values())


def own_expander(describer: Describer, params: Params) -> Expander:
    """Returns what expands by a captioner that was trained with `captioner_loss.expand_share`.

    `describer` draws ("nucleus"), and has room for a prompt and for what becomes of it.
    """

    def expand(prompts: Sequence[str], seeds: Sequence[int], attempt: int) -> list[str]:
        keys = [jax.random.fold_in(jax.random.key(seed), attempt) for seed in seeds]
        written = describer.go_on(params, [ask_to_expand(prompt) for prompt in prompts], keys)
        return [one.text if one.whole else "" for one in written]

    return expand
