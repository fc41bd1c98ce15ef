"""What a JSON file beside weights says: it comes from strangers, or was cut off on its way."""

import json
from pathlib import Path
from typing import Any

from sora_jax.core.errors import UserError


def read_config(path: Path, *, remedy: str = "download it again") -> dict[str, Any]:
    """Returns the object in a JSON file, empty where there is no file; UserError, which ends in `remedy`, else."""
    return parse_config(path.read_bytes(), what=str(path), remedy=remedy) if path.is_file() else {}


def check_heads(heads: Any, *, width: int, what: str) -> None:
    """Raises UserError where `what` says a number of heads that does not divide the width."""
    if type(heads) is not int or heads < 1 or width % heads:
        raise UserError(
            f"{what}: its config.json has {heads!r} heads, which do not divide the width {width}: take both of one "
            "model"
        )


def parse_config(text: str | bytes, *, what: str, remedy: str = "download it again") -> dict[str, Any]:
    """Returns the object of `what`; raises UserError for anything else, ending in `remedy`."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is damaged ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"{what} is damaged (it is no object); {remedy}")
    return found
