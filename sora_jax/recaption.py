"""Captions of clips, written anew by a model that describes, into a table that `data.captions` takes.

  python -m sora_jax.recaption --workdir=runs/captions --output=captions.jsonl
  python -m sora_jax.recaption --workdir=runs/captions --data=DIR --output=captions.jsonl
  python -m sora_jax.recaption --server=http://localhost:8000/v1 --model=NAME --data=DIR --output=captions.jsonl

Goes on where it was stopped. Clips that cannot be read or described are named, with the reason, beside the table:
captions.failed.jsonl. docs/captions.md says what is refused, and how often which caption is drawn.
"""

from collections.abc import Sequence
from pathlib import Path

from sora_jax.core.commands import Flags, run_command

_FLAGS = Flags()
_CONFIG = _FLAGS.config(
    "config", "configs/folder.py", "Of the clips, where there is no workdir; its keys, where given, count in any case."
)
_WORKDIR = _FLAGS.path("workdir", None, "The folder of a run with a captioner, whose clips and config are meant, too.")
_DATA = _FLAGS.path("data", None, "A folder of videos and images to caption, instead of the clips of the config.")
_OUTPUT = _FLAGS.path("output", "captions.jsonl", "The table.")
_SERVER = _FLAGS.string("server", None, "Address of a chat server whose model sees frames of the clips and writes.")
_MODEL = _FLAGS.string("model", None, "Name of the server's model; default: the only one that it has.")
_CLIPS = _FLAGS.integer("clips", None, "How many clips, from the first; default: all.", least=1)
_RETRY_FAILED = _FLAGS.switch("retry_failed", False, "Try clips again that failed before.")


def main(_: Sequence[str]) -> None:
    """Captions what has no row in the table yet."""
    # Here, because it brings jax.
    from sora_jax.core.compiling import use_compilation_cache
    from sora_jax.experiment.recaptioning import RecaptionRequest, caption_anew

    use_compilation_cache()
    request = RecaptionRequest(
        output=Path(_OUTPUT.value),
        workdir=_WORKDIR.value,
        data=_DATA.value,
        server=_SERVER.value,
        model=_MODEL.value,
        count=_CLIPS.value,
        retry_failed=bool(_RETRY_FAILED.value),
    )
    caption_anew(request, _CONFIG.value, _CONFIG.given)


if __name__ == "__main__":
    run_command(main, _FLAGS)
