"""Batches of canvases are as large as what is made needs, and few sizes have programs."""

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sora_jax.core.tree import merge_model
from sora_jax.generate import sampler as sampler_module
from sora_jax.generate.canvas import lay_out
from sora_jax.generate.denoiser import taken_over
from sora_jax.generate.row_sizes import RowSize, RowSizes, longer_rows, of_length
from sora_jax.generate.sampler import Sampler
from tests.generate.test_sampler import FIRST, LAYOUT, SOLVER, made

LONG = of_length(LAYOUT, 600)


def canvases(*tokens):
    return [dataclasses.replace(FIRST, grid=(1, 1, count)) for count in tokens]


@pytest.mark.parametrize(
    ("tokens", "rows", "parts", "expected"),
    [(25, 8, 1, (128, 1)), (129, 64, 1, (256, 6)), (129, 64, 4, (256, 8)), (1000, 2, 2, (1024, 2))],
)
def test_longer_rows_are_fewer_and_come_out_even(tokens, rows, parts, expected):
    longer = longer_rows(RowSize(rows, LAYOUT.budget.tokens), tokens, parts=parts)
    assert (longer.tokens, longer.rows) == expected


@pytest.mark.parametrize(
    ("tokens", "parts", "expected"),
    [
        ((10,), 1, (1, 128)),
        ((129,), 1, (1, 256)),
        ((600,), 1, (1, 600)),
        ((100, 100), 1, (1, 256)),
        ((100, 100), 2, (2, 128)),
        ((600, 600, 1), 2, (4, 600)),
        ((600,) * 8, 1, (8, 600)),
        ((600,) * 9, 1, (8, 600)),
        ((10,), 3, (8, 128)),
    ],
)
def test_a_batch_is_as_large_as_what_is_made_needs(tokens, parts, expected):
    assert RowSizes(RowSize(8, 600), parts=parts).choose(canvases(*tokens), LONG) == expected


def test_a_program_that_is_there_serves_what_needs_more_than_a_fourth_of_it():
    sizes = RowSizes(RowSize(8, 600))
    assert sizes.choose(canvases(600), LONG) == (1, 600)
    assert sizes.choose(canvases(200), LONG) == (1, 600)
    assert sizes.choose(canvases(100), LONG) == (1, 128)
    assert sizes.choose(canvases(200), LONG) == (1, 600)
    assert sizes.choose(canvases(600, 600), LONG) == (2, 600)
    assert sizes.choose(canvases(600), LONG) == (1, 600)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=12), st.sampled_from([1, 2, 4]))
def test_all_canvases_have_a_place(tokens, parts):
    chosen = canvases(*tokens)
    rows, length = RowSizes(RowSize(4, 600), parts=parts).choose(chosen, LONG)
    assert rows % parts == 0
    batches, places = lay_out(chosen, of_length(LONG, length), rows=rows, row_tokens=600)
    assert len(batches) == 1 or (rows, length) == (4, 600)
    assert [place.tokens.stop - place.tokens.start for place in places] == tokens
    assert {int(batch.row_tokens) for batch in batches} == {600}


def _pair(**changes):
    """Returns two samplers of the same rows, which go their own ways, and the parameters."""
    usual, params, structure = made()
    config = dataclasses.replace(SOLVER, **changes)
    options = {"rows": 4, "config": config, "dtype": np.dtype(np.float32)}
    return [Sampler(structure, usual.codec, of_length(LAYOUT, 256), **options) for _ in range(2)], params


def test_a_clip_is_the_same_in_smaller_rows(monkeypatch):
    (alone, among), params = _pair()
    sizes = []

    def noted(chosen, layout, *, rows, row_tokens):
        sizes.append((rows, layout.budget.tokens))
        return lay_out(chosen, layout, rows=rows, row_tokens=row_tokens)

    monkeypatch.setattr(sampler_module, "lay_out", noted)
    company = [dataclasses.replace(FIRST, grid=(4, 8, 8), seed=seed) for seed in (1, 2, 3)]
    (small,) = alone(params, [FIRST])
    first, *_ = among(params, [FIRST, *company])
    assert sizes == [(1, 128), (4, 256)]
    assert np.abs(small.astype(int) - first).max() <= 1
    assert len(np.unique(small)) > 20


def test_shorter_rows_take_over_earlier_work_in_the_same_steps():
    """Which steps do depends on the tokens of a row, so on those that it would have had."""
    _, params = _pair()
    transformer = merge_model(made()[2], params).transformer

    def taken(cache, tokens):
        return taken_over(transformer, dataclasses.replace(SOLVER, steps=6, cache=cache), tokens=tokens).tolist()

    cache = next(value for value in np.geomspace(1e-3, 10, 200) if taken(value, 128) != taken(value, 256))
    (alone, among), params = _pair(steps=6, cache=float(cache))
    among(params, [dataclasses.replace(FIRST, grid=(4, 8, 8))])
    small, usual = (one.latents(params, [dataclasses.replace(FIRST, grid=(1, 8, 9))])[0] for one in (alone, among))
    np.testing.assert_allclose(small, usual, atol=1e-4)
