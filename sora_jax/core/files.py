"""Files that appear whole or not at all."""

import os
from pathlib import Path

from sora_jax.core.paths import beside


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that a reader, or a crash, never meets half a file."""
    temporary = beside(path, ".tmp")
    # Names of files may be bytes that are no text: half a pair of surrogates in Python.
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)
