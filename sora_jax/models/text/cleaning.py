"""How a text is cleaned before a public encoder's tokenizer reads it: named and versioned, as states depend on it."""

import dataclasses
import html
import importlib
import re
from collections.abc import Callable
from importlib import metadata

from sora_jax.core.errors import UserError
from sora_jax.data.tokens import clean_caption


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cleaning:
    """A way to clean texts.

    Attributes:
      name: Its name and version; raise it when a text would come out otherwise.
      clean: Text -> cleaned text; cleaning twice is as cleaning once. UserError where a package that it needs is
        missing.
      package: Whose version counts as well, as other versions of it clean otherwise; None: it needs none.
    """

    name: str
    clean: Callable[[str], str]
    package: str | None = None

    @property
    def version(self) -> str:
        """What cleaned texts depend on, for the recipe of prepared shards; UserError where the package is missing."""
        if self.package is None:
            return self.name
        try:
            return f"{self.name}, {self.package} {metadata.version(self.package)}"
        except ImportError as error:
            raise _missing(self.package, error) from error


def _missing(package: str, error: ImportError) -> UserError:
    return UserError(
        f"this text encoder needs {package}, to clean texts as in its training ({error}): pip install 'sora-jax[text]'"
    )


def _as_wan(text: str) -> str:
    """Returns the text repaired by ftfy, without HTML's escapes, words apart by one space; case is kept.

    What this project leaves out of every caption goes first: control characters and what cannot be seen.
    """
    try:
        ftfy = importlib.import_module("ftfy")
    except ImportError as error:
        raise _missing("ftfy", error) from error
    unescaped = html.unescape(html.unescape(ftfy.fix_text(clean_caption(text))))
    return re.sub(r"\s+", " ", unescaped.strip()).strip()


PLAIN = Cleaning(name="plain, version 1", clean=clean_caption)
WAN = Cleaning(name="wan, version 1", clean=_as_wan, package="ftfy")
