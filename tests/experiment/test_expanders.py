"""What is asked of a longer text, whoever wrote it."""

import re

import pytest

from sora_jax.experiment.expanders import PromptExpander
from tests.generate.test_tasks import LIMITS


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a circle, far" + " away" * LIMITS.text_tokens, rf"what was written has \d+ .* takes {LIMITS.text_tokens}"),
        ("\N{ZERO WIDTH SPACE}", "nothing whole was written"),
    ],
)
def test_a_longer_text_is_refused_in_words_about_it_and_not_about_the_prompt(text, reason):
    expander = PromptExpander(expander=lambda prompts, *_: [text] * len(prompts), limits=LIMITS, learnt=False)
    (fault,) = expander.find_faults("circle", text)
    assert re.fullmatch(reason, fault)
