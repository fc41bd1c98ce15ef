"""Answers of language models without what they put around them."""

import pytest

from sora_jax.core.chat_text import bare_text, json_object


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("A red dog.", "A red dog."),
        ("  A red dog.\n", "A red dog."),
        ("<think>red? yes</think>\n\nA red dog.", "A red dog."),
        ("red? yes</think>A red dog.", "A red dog."),
        ("<think>one</think>no<think>two</think>A red dog.", "A red dog."),
        ("<think>so many thoughts", ""),
        ('"A red dog."', "A red dog."),
        ("“A red dog.”", "A red dog."),
        ("'A red dog.'", "A red dog."),
        ('"Red" and "blue"', '"Red" and "blue"'),
        ('"A dog says \\"no\\"."', 'A dog says "no".'),
        ("```\nA red dog.\n```", "A red dog."),
        ('```json\n{"caption": "A red dog."}\n```', "A red dog."),
        ('{"caption": "A red dog."}', "A red dog."),
        ('{"short": "A dog.", "detailed": "A red dog."}', '{"short": "A dog.", "detailed": "A red dog."}'),
        ('{"caption": ["A red dog."]}', '{"caption": ["A red dog."]}'),
        ("{half of it", "{half of it"),
        ('"', '"'),
        ("", ""),
    ],
)
def test_what_is_around_an_answer_is_taken_off(answer, text):
    assert bare_text(answer) == text


def test_an_object_is_found_in_what_is_said_around_it():
    assert json_object('Here it is:\n```json\n{"a": {"b": 1}}\n```\nAnything else?') == {"a": {"b": 1}}
    assert json_object('{"a": "two\nlines"}') == {"a": "two\nlines"}


@pytest.mark.parametrize("answer", ["no", "} {", '{"a": ', "{a}", '{"a": ' + "[" * 100_000 + "}"])
def test_an_answer_without_an_object_is_refused(answer):
    with pytest.raises(ValueError, match=r"JSON|nested|Expecting|property"):
        json_object(answer)
