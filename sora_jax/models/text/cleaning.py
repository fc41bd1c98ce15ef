"""How a text is cleaned before a public encoder's tokenizer reads it: named and versioned, as states depend on it."""

import dataclasses
import html
import importlib
import re
from collections.abc import Callable

from sora_jax.core.errors import UserError
from sora_jax.data.tokens import clean_caption


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cleaning:
    """A way to clean texts.

    Attributes:
      version: Its name and version, for the recipe of prepared shards; raise it when a text would come out otherwise.
      clean: Text -> cleaned text; cleaning twice is as cleaning once. UserError where a package that it needs is
        missing.
    """

    version: str
    clean: Callable[[str], str]


def _as_wan(text: str) -> str:
    """Returns the text repaired by ftfy, without HTML's escapes, words apart by one space; case is kept.

    What this project leaves out of every caption goes first: control characters and what cannot be seen.
    """
    try:
        ftfy = importlib.import_module("ftfy")
    except ImportError as error:
        raise UserError(
            f"this text encoder needs ftfy, to clean texts as in its training ({error}): pip install 'sora-jax[text]'"
        ) from error
    unescaped = html.unescape(html.unescape(ftfy.fix_text(clean_caption(text))))
    return re.sub(r"\s+", " ", unescaped.strip()).strip()


PLAIN = Cleaning(version="plain, version 1", clean=clean_caption)
WAN = Cleaning(version="wan, version 1", clean=_as_wan)
