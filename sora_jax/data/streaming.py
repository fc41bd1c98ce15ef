"""Packs from a stream: samples whose lengths nobody knows beforehand, packed first fit by grain as they come.

Letters: K text tokens of a row, L tokens, P patch width. The arrays are those of `data/packs.py`.

Training packs by plan (`data/pipeline.py`): fuller rows, balanced over devices, numbered, the same for any number of
processes. This is for what has no index, such as clips that are drawn or encoded while the model trains.
"""

import dataclasses
import functools

import grain
import numpy as np
from absl import logging

from sora_jax.core import rng
from sora_jax.core.printable import printable
from sora_jax.data.captions import count_tokens
from sora_jax.data.packing import Budget, find_rejected
from sora_jax.data.packs import Pack, PackLayout
from sora_jax.data.shards import Prepared
from sora_jax.video import shapes
from sora_jax.video.patches import patchify

# The arrays of a row by what limits them, the one that gives the segment numbers first; grain makes those itself.
_TOKENS = ("tokens_BLP", "position_BL3")
_TEXT = ("text_BKQ", "text_position_BK")
_SEGMENTS = ("grid_BS3", "time_step_BS", "sample_BS")


def pack_stream(
    samples: grain.IterDataset, layout: PackLayout, *, rows: int, seed: int, open_rows: int = 64
) -> grain.IterDataset:
    """Returns packs of `rows` rows from a dataset of `Prepared` samples with normalised latents.

    A sample goes whole into the first of `open_rows` rows that has room for its tokens, its text and one more segment;
    when none has, all are handed out, shuffled by `seed`, and as many empty ones opened. One of the captions that fit
    is drawn by weight, by `seed` and the number of the sample in the stream; that number is `sample_BS`. Samples that
    fit no row are left out and named in the log. At the end of the stream the last pack may have fewer rows: repeat the
    samples where shapes must not change.

    The state of its iterator (`get_state`, `set_state`) is that of the samples' iterator and a few counts. What is in
    open rows is read again after a resume, up to `open_rows` rows of samples: so they must come again in the same
    order, and a resume costs that reading. Each process packs its own samples.
    """
    budget = layout.budget
    lengths = {
        **dict.fromkeys(_TOKENS, budget.tokens),
        **dict.fromkeys(_TEXT, budget.text_tokens),
        **dict.fromkeys(_SEGMENTS, budget.segments),
    }
    packed = grain.experimental.FirstFitPackIterDataset(
        samples.map_with_index(functools.partial(_alone, layout, seed)).filter(_fits),
        length_struct=lengths,
        num_packing_bins=open_rows,
        seed=seed,
        # Of these no segment numbers are made.
        meta_features=[name for name in lengths if name not in (_TOKENS[0], _TEXT[0])],
        padding_struct={name: -1 if name == "sample_BS" else 0 for name in lengths},
    )
    return packed.map(_named).batch(rows)


def _alone(layout: PackLayout, seed: int, number: int, sample: Prepared) -> Pack | None:
    """Returns the arrays of a row that holds this sample and nothing else, None where it fits no row of `layout`."""
    t, h, w, _ = sample.latent_THWC.shape
    grid = shapes.token_grid((t, h, w), layout.patch)
    captions = sample.captions or ("",)
    text_M = np.array([count_tokens(caption) for caption in captions])
    rejected = find_rejected(np.array([shapes.count(grid)]), text_M.min(keepdims=True), layout.budget)
    if rejected:
        logging.warning("%s is left out: %s", printable(sample.source_id), rejected[0].reason)
        return None
    weights_M = np.where(text_M <= layout.budget.text_tokens, sample.weights or 1.0, 0.0)
    chosen = rng.generator(seed, "captions of a stream", number).choice(len(captions), p=weights_M / weights_M.sum())
    alone = Budget(tokens=shapes.count(grid), text_tokens=int(text_M[chosen]), segments=1)
    row = dataclasses.replace(layout, budget=alone).row()
    tokens_LP = patchify(sample.latent_THWC, layout.patch)
    row.put(sample=number, grid=grid, fps=sample.fps, caption=captions[chosen], tokens_LP=tokens_LP)
    return {name: row.arrays[name] for name in (*_TOKENS, *_TEXT, *_SEGMENTS)}


def _fits(arrays: Pack | None) -> bool:
    return arrays is not None


def _named(packed: Pack) -> Pack:
    """Returns a row of grain's under the names of a pack."""
    row = {name: packed[name] for name in (*_TOKENS, *_TEXT, *_SEGMENTS)}
    return {
        **row,
        "segment_BL": packed[f"{_TOKENS[0]}_segment_ids"],
        "text_segment_BK": packed[f"{_TEXT[0]}_segment_ids"],
    }
