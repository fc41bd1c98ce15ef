"""What a language model answers, without what it puts around it."""

import json
import re

_FENCED = re.compile(r"```[\w-]*\s*(.*?)\s*```", re.DOTALL)
_QUOTES = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb", "\u201e": "\u201c"}


def bare_text(answer: str) -> str:
    """Returns an answer without thoughts (<think>...</think>), a fence of markdown and quotes around the whole of it.

    Of JSON of one key with a text, {"caption": "A dog."}, it is that text; other JSON stays as it is. Thoughts that
    never end leave what stands before them.
    """
    text = answer.rpartition("</think>")[2].partition("<think>")[0].strip()
    fenced = _FENCED.fullmatch(text)
    text = fenced[1] if fenced else text
    if text[:1] in ("{", '"'):
        text = _opened(text)
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 1 and text.endswith(closing) and closing not in text[1:-1]:
        text = text[1:-1]
    return text.strip()


def _opened(text: str) -> str:
    """Returns the text in JSON that holds one, else what was given."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    values = list(found.values()) if isinstance(found, dict) else [found]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else text


def json_object(answer: str) -> dict[str, object]:
    """Returns the JSON object in an answer, from its first brace to its last; raises ValueError where there is none."""
    start, end = answer.find("{"), answer.rfind("}")
    if start < 0 or end < start:
        raise ValueError("there is no JSON object in it")
    try:
        found = json.loads(answer[start : end + 1], strict=False)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found
