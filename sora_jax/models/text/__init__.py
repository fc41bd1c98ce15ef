"""Text encoders: a table by the names that a config gives them. A further one is a module here and a row."""

import functools
from collections.abc import Callable

from sora_jax.core.errors import UserError
from sora_jax.models.text.bytes import ByteText
from sora_jax.models.text.encoder import TextConfig, TextEncoder
from sora_jax.models.text.frozen import FrozenText
from sora_jax.models.text.t5_files import T5, UMT5
from sora_jax.models.text.towers import CLIP, MINILM

ENCODERS: dict[str, Callable[[TextConfig], TextEncoder]] = {
    "bytes": ByteText,
    "minilm": functools.partial(FrozenText, MINILM),
    "clip": functools.partial(FrozenText, CLIP),
    "t5": functools.partial(FrozenText, T5),
    "umt5": functools.partial(FrozenText, UMT5),
}


def build_encoder(config: TextConfig) -> TextEncoder:
    """Returns the text encoder that a config asks for; raises UserError where there is none of that name."""
    if config.encoder not in ENCODERS:
        raise UserError(f"text.encoder {config.encoder!r} is none of {', '.join(ENCODERS)}")
    return ENCODERS[config.encoder](config)
