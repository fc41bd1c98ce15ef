"""A prompt becomes a text without faults, or stays and says why."""

import jax
import pytest

from sora_jax.data.prompt_guard import find_losses
from sora_jax.generate.expand import Expansion, expand_prompts, own_expander
from tests.generate.test_captioning import describer
from tests.models.test_captioner import CONFIG, params_of

LONG = "a red circle moves right on a dark background"


def test_faulty_texts_are_drawn_again_four_times_in_all():
    calls = []

    def expander(prompts, seeds, attempt):
        calls.append((list(prompts), list(seeds), attempt))
        texts = {"red circle": LONG if attempt == 2 else "a blue circle", "cat": ""}
        return [texts.get(prompt, prompt) for prompt in prompts]

    found = expand_prompts(expander, ["as it is", "red circle", "cat"], [5, 6, 7], find_losses)
    assert found == [
        Expansion(prompt="as it is", text="as it is"),
        Expansion(prompt="red circle", text=LONG),
        Expansion(prompt="cat", text="cat", faults=("nothing whole was written",)),
    ]
    assert calls == [
        (["as it is", "red circle", "cat"], [5, 6, 7], 0),
        (["red circle", "cat"], [6, 7], 1),
        (["red circle", "cat"], [6, 7], 2),
        (["cat"], [7], 3),
    ]


@pytest.mark.slow  # compiles the whole model
def test_the_captioner_goes_on_from_each_text_by_its_own_seed():
    params, describe = params_of(CONFIG), describer("nucleus")
    keys = [jax.random.key(seed) for seed in (1, 2, 2)]
    texts = ["expand: red", "expand: red", "expand: a blue"]
    found = describe.go_on(params, texts, keys)
    assert len({one.text for one in found}) == 3
    assert describe.go_on(params, texts[1:], keys[1:]) == found[1:]
    expand = own_expander(describe, params)
    assert expand(["red"], [3], 0) == expand(["red"], [3], 0)
