"""The trained captioner of a run, as its stages and other commands load it from a workdir."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from sora_jax.core.errors import UserError
from sora_jax.core.precision import compute_dtype
from sora_jax.core.rng import Rngs
from sora_jax.core.tree import Params, abstract_model
from sora_jax.data.caption_tokens import CAPTION_TOKENIZER
from sora_jax.experiment.loading import load_weights, pack_layout
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.stage_settings import CAPTIONER
from sora_jax.generate.captioning import Describer, PackWriter
from sora_jax.generate.decoding import Writer
from sora_jax.generate.expand import Expander, own_expander
from sora_jax.models.captioner import Captioner
from sora_jax.train.state import track_name
from sora_jax.train.workdir import Workdir


def build_captioner(settings: Settings, key: jax.Array) -> Captioner:
    """Returns a fresh captioner."""
    return Captioner(settings.captioner, patch_width=settings.patch_width, rngs=Rngs(key))


def load_captioner(workdir: Workdir, settings: Settings, *, step: int | None = None) -> tuple[Params, str, int]:
    """Returns (averaged parameters, stage, step) of the newest captioner stage with a checkpoint, on one device.

    Raises UserError where there is none.
    """
    shapes = abstract_model(functools.partial(build_captioner, settings))[1]
    for stage in reversed(settings.stages_of(CAPTIONER)):
        saved = workdir.checkpoints(stage)
        if saved.exists() and any(path.name.isdecimal() for path in saved.iterdir()):
            params, found = load_weights(workdir, stage, shapes, track=track_name(settings.ema.widths[0]), step=step)
            return params, stage, found
    raise UserError(
        f"{workdir.path} has no checkpoint of a captioner: train one with configs/captions.py, and give its workdir"
    )


def make_describer(settings: Settings, *, rows: int, writer: Callable[..., Writer] = PackWriter) -> Describer:
    """Returns what writes captions with the run's captioner, `rows` rows of clips at once; `writer` says how."""
    method, most = settings.captioning.method, settings.text.max_tokens
    return _describer(settings, rows=rows, max_tokens=most, method=method, writer=writer)


def make_expander(settings: Settings, params: Params) -> Expander:
    """Returns what expands prompts with the run's captioner, by nucleus sampling as `captioning` has it."""
    # Behind the prompt, which is as long at most, and the word before it.
    most = 2 * settings.text.max_tokens + 1
    return own_expander(_describer(settings, rows=1, max_tokens=most, method="nucleus"), params)


def _describer(
    settings: Settings, *, rows: int, max_tokens: int, method: str, writer: Callable[..., Writer] = PackWriter
) -> Describer:
    return Describer(
        abstract_model(functools.partial(build_captioner, settings))[0],
        dataclasses.replace(pack_layout(settings), tokenizer=CAPTION_TOKENIZER),
        rows=rows,
        max_tokens=max_tokens,
        config=dataclasses.replace(settings.captioning, method=method),
        dtype=compute_dtype(settings.precision),
        writer=writer,
    )
