"""Which clips are given beside a clip, how often; rows with them are as full as without."""

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.packing.context import ContextMix
from sora_jax.data.packing.plan import Budget
from sora_jax.data.packing.rows import Lengths, Pool, RowPlan

SHARES = {"none": 0.4, "edges": 0.3, "edges+low": 0.3}


def test_shares_are_kept_and_dropout_leaves_out_each_by_itself():
    drawn_WX = ContextMix(shares=SHARES, dropout=0.0).draw(20_000, np.random.default_rng(0))
    edges_W, low_W = drawn_WX.T
    assert abs(edges_W.mean() - 0.6) < 0.02
    assert abs(low_W.mean() - 0.3) < 0.02
    assert not np.any(low_W & ~edges_W)
    mix = ContextMix(shares=SHARES, dropout=0.2)
    edges_W, low_W = mix.draw(20_000, np.random.default_rng(0)).T
    assert abs(np.mean(low_W & ~edges_W) - 0.3 * 0.8 * 0.2) < 0.01
    assert (mix.kinds, mix.parts) == (("edges", "low"), 2)


@pytest.mark.parametrize("shares", [{"none": 0.5}, {"none": 1.5, "edges": -0.5}, {"edges+edges": 1.0}, {"low+": 1.0}])
def test_shares_that_mean_nothing_are_refused(shares):
    with pytest.raises(UserError, match="context"):
        ContextMix(shares=shares, dropout=0.1)


def plan(count=600, *, tokens=512):
    generator = np.random.default_rng(0)
    own_N = generator.choice([9, 12, 16, 20, 36, 48, 80], count)
    context_NX = np.stack([own_N // 4, np.where(np.arange(count) % 3, own_N // 2, 0)], axis=1)
    lengths = Lengths(
        tokens_N=own_N,
        text_tokens_M=np.ones(count, int),
        caption_start_N1=np.arange(count + 1),
        context_NX=context_NX,
    )
    budget = Budget(tokens=tokens, text_tokens=64, segments=64)
    pools = [Pool(ids_N=np.arange(count), share=1.0)]
    mix = ContextMix(shares=SHARES, dropout=0.1)
    return lengths, context_NX, RowPlan(lengths, pools, budget, seed=0, window=count, rows_per_batch=2, context=mix)


def test_rows_with_clips_beside_hold_what_was_planned_and_are_full():
    _, context_NX, rows = plan()
    used, number = [], 0
    while (row := rows.row(number)).window == 0:
        given_SX = np.where(row.context_SX, context_NX[row.samples_S], 0)
        np.testing.assert_array_equal(row.beside_S, given_SX.sum(axis=1))
        assert not np.any(row.context_SX & (context_NX[row.samples_S] == 0))
        used.append(int(np.sum(row.tokens_S + row.beside_S)))
        number += 1
    assert max(used) <= 512
    assert np.mean(used[: len(used) // 2 * 2]) / 512 >= 0.98


def test_a_clip_that_fits_no_row_with_what_is_beside_it_goes_without():
    lengths, _, rows = plan(tokens=84)
    for number in range(40):
        row = rows.row(number)
        assert not np.any(row.context_SX[lengths.tokens_N[row.samples_S] == 80])
        assert np.sum(row.tokens_S + row.beside_S) <= 84


def test_who_goes_without_is_counted():
    mix = ContextMix(shares={"none": 0.5, "edges+low": 0.5}, dropout=0.0)
    context_NX = np.array([[2, 4], [2, 0], [0, 0], [20, 40], [30, 30]])
    found = mix.lacking(context_NX, np.array([8, 8, 95, 50, 120]), room=100)
    assert (found.missing, found.long, found.of) == ({"edges": 1, "low": 2}, 1, 5), "the last is in no row at all"
    assert (found.longest, found.room) == (110, 100)
    everyone = mix.lacking(context_NX[:1], np.array([8]), room=100)
    assert (everyone.missing, everyone.long) == ({}, 0)
