"""Clips that writers of shards left out, each with its reason: NAME.skipped.jsonl."""

import contextlib
import json
from pathlib import Path

from sora_jax.data.shards.files import ClipKey

SKIPPED_FILE = "skipped.jsonl"


def skip_line(clip: ClipKey, reason: str) -> bytes:
    """Returns the line that says why a clip is left out."""
    source_id, origin = clip
    return json.dumps({"source_id": source_id, "origin": origin, "reason": reason}).encode() + b"\n"


def read_skipped(directory: Path) -> dict[ClipKey, str]:
    """Returns the reason for every clip that writers left out; a line torn by a killed one is passed over."""
    skipped = {}
    for path in sorted(directory.glob(f"*.{SKIPPED_FILE}")):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                skipped[entry["source_id"], entry["origin"]] = entry["reason"]
    return skipped


def end_last_line(path: Path) -> None:
    """Ends a line torn by a killed writer, so that it does not swallow the next one."""
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
