import collections
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.data.packing.plan import Budget, plan_window
from sora_jax.data.packing.rows import Draws, Lengths, Pool, RowPlan, choose_tokens

BUDGET = Budget(tokens=128, text_tokens=64, segments=16)


def one_pool(count):
    return [Pool(ids_N=np.arange(count), share=1.0)]


def make_lengths(count, *, seed=0, captions=1):
    generator = np.random.default_rng(seed)
    return Lengths(
        tokens_N=generator.choice([9, 12, 16, 20, 36, 48, 80], count),
        text_tokens_M=generator.integers(1, 12, count * captions),
        caption_start_N1=np.arange(0, count * captions + 1, captions),
    )


def make_plan(lengths, *, seed=0, window=64, rows_per_batch=4, pools=None, drop=(0.0, 0.0)):
    pools = pools or one_pool(len(lengths.tokens_N))
    return RowPlan(lengths, pools, BUDGET, seed=seed, window=window, rows_per_batch=rows_per_batch, token_drop=drop)


def contents(plan, start, stop):
    rows = [plan.row(number) for number in range(start, stop)]
    return [[column.tolist() for column in (r.samples_S, r.captions_S, r.tokens_S, r.draws_S)] for r in rows]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 200), st.integers(0, 3))
def test_any_stretch_of_draws_is_cut_from_one_sequence_of_shuffled_epochs(size, start, count, seed):
    draws = Draws(one_pool(size), seed=seed)
    stretch = draws.take(start, start + count + 1)
    np.testing.assert_array_equal(stretch, Draws(one_pool(size), seed=seed).take(0, start + count + 1)[start:])
    epoch = draws.take(3 * size, 4 * size)
    assert sorted(epoch.tolist()) == list(range(size))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.01, 10), st.integers(1, 6))
def test_pools_are_drawn_by_share_and_each_evenly(first, second, share, epochs):
    pools = [Pool(ids_N=np.arange(first), share=1.0), Pool(ids_N=first + np.arange(second), share=share)]
    draws = Draws(pools, seed=0)
    counts = collections.Counter(draws.take(0, epochs * draws.per_epoch).tolist())
    of_first = [counts[sample] for sample in range(first)]
    of_second = [counts[sample] for sample in range(first, first + second)]
    for of_pool in (of_first, of_second):
        assert max(of_pool) - min(of_pool) <= 1
    expected = max(1, round((first + second) / (1 + share)))
    assert sum(of_first) == epochs * expected


def test_rows_hold_every_sample_exactly_once_in_an_epoch():
    # Two windows of 64 draws make an epoch of 128 samples.
    plan = make_plan(make_lengths(128), rows_per_batch=1)
    seen = collections.defaultdict(list)
    for number in range(200):
        row = plan.row(number)
        seen[row.epoch].extend(row.samples_S.tolist())
    assert sorted(seen[0]) == list(range(128))
    assert sorted(seen[1]) == list(range(128))
    assert seen[0] != seen[1]


@pytest.mark.parametrize(("samples", "window"), [(10, 64), (100, 64), (100, 7)])
def test_windows_that_do_not_divide_epochs_lose_and_repeat_nothing(samples, window):
    plan = make_plan(make_lengths(samples), window=window, rows_per_batch=1)
    drawn, number = [], 0
    while plan.row(number).window < samples:
        drawn.extend(plan.row(number).samples_S.tolist())
        number += 1
    # As many windows as samples hold each sample `window` times.
    assert collections.Counter(drawn) == dict.fromkeys(range(samples), window)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 120), st.integers(1, 9), st.integers(0, 3), st.sampled_from([(0.0, 0.0), (0.2, 0.7)]))
def test_rows_do_not_depend_on_which_were_asked_for_before(start, rows_per_batch, seed, drop):
    lengths = make_lengths(90, captions=2)
    plan = make_plan(lengths, seed=seed, rows_per_batch=rows_per_batch, drop=drop)
    sequence = contents(plan, 0, 140)
    again = make_plan(lengths, seed=seed, rows_per_batch=rows_per_batch, drop=drop)
    assert contents(again, start, 140) == sequence[start:]
    assert contents(again, 0, start) == sequence[:start]


def test_a_batch_holds_the_same_rows_in_whatever_order_balances_it():
    lengths = make_lengths(200)
    plain, balanced = make_plan(lengths, rows_per_batch=1), make_plan(lengths, rows_per_batch=8)
    for batch in range(5):
        first = sorted(contents(plain, batch * 8, batch * 8 + 8))
        assert sorted(contents(balanced, batch * 8, batch * 8 + 8)) == first


def test_without_token_drop_a_window_is_planned_on_whole_clips():
    lengths = make_lengths(90)
    plan = make_plan(lengths, rows_per_batch=1)
    for window in range(3):
        samples_W = Draws(one_pool(90), seed=0).take(64 * window, 64 * window + 64)
        tokens_W, text_W = lengths.tokens_N[samples_W], lengths.text_tokens_M[samples_W]
        expected = plan_window(tokens_W, text_W, BUDGET, seed=0, window=window)
        first = next(number for number in range(200) if plan.row(number).window == window)
        for number in range(len(expected)):
            row, members_S = plan.row(first + number), expected.row(number)
            np.testing.assert_array_equal(row.samples_S, samples_W[members_S])
            np.testing.assert_array_equal(row.tokens_S, tokens_W[members_S])
            np.testing.assert_array_equal(row.draws_S, 64 * window + members_S)


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)).map(sorted), st.integers(0, 3))
def test_token_drop_takes_a_share_within_its_range_and_loses_no_draw(drop, seed):
    lengths = make_lengths(90)
    plan = make_plan(lengths, seed=seed, rows_per_batch=1, drop=tuple(drop))
    rows = [plan.row(0)]
    while rows[-1].window < 3:
        rows.append(plan.row(len(rows)))
    rows.pop()
    for row in rows:
        whole_S = lengths.tokens_N[row.samples_S]
        least_S, most_S = (np.rint(share * whole_S) for share in drop)
        assert np.all(row.tokens_S >= np.maximum(1, whole_S - most_S))
        assert np.all(row.tokens_S <= np.maximum(1, whole_S - least_S))
        assert row.tokens_S.sum() <= 128
        assert lengths.text_tokens_M[row.samples_S].sum() <= 64
        assert len(row.samples_S) <= 16
    draws = np.concatenate([row.draws_S for row in rows])
    assert sorted(draws) == list(range(3 * 64))
    samples = np.concatenate([row.samples_S for row in rows])
    np.testing.assert_array_equal(samples, Draws(one_pool(90), seed=seed).take(0, 3 * 64)[draws])


def test_shares_of_token_drop_are_uniform_drawn_anew_and_rows_stay_full():
    lengths = dataclasses.replace(make_lengths(500), tokens_N=np.full(500, 80), text_tokens_M=np.full(500, 1))
    plan = make_plan(lengths, window=1000, drop=(0.3, 0.8))
    rows = [plan.row(number) for number in range(400)]
    kept = np.concatenate([row.tokens_S for row in rows])
    counts = np.histogram(kept, bins=4, range=(16, 56))[0] / len(kept)
    np.testing.assert_allclose(counts, 0.25, atol=0.04)
    of_sample = collections.defaultdict(set)
    for row in rows:
        for sample, tokens in zip(row.samples_S, row.tokens_S, strict=True):
            of_sample[sample].add(tokens)
    assert max(map(len, of_sample.values())) > 1
    assert kept.sum() / (400 * 128) > 0.95, "whole clips would fill 0.63"


def test_kept_tokens_are_a_function_of_seed_and_draw_and_all_alike_likely():
    chosen = [choose_tokens(7, 3, seed=0, draw=draw).tolist() for draw in range(2000)]
    assert chosen == [choose_tokens(7, 3, seed=0, draw=draw).tolist() for draw in range(2000)]
    assert chosen != [choose_tokens(7, 3, seed=1, draw=draw).tolist() for draw in range(2000)]
    counts = collections.Counter(map(tuple, chosen))
    assert set(counts) == set(itertools.combinations(range(7), 3)), "ascending, without repeats"
    assert max(counts.values()) < 2 * min(counts.values())
    assert list(range(7))[choose_tokens(7, 7, seed=0, draw=0)] == list(range(7))


@pytest.mark.parametrize("drop", [(0.0, 0.0), (0.1, 0.9)])
def test_devices_get_nearly_the_same_attention_cost(drop):
    lengths = make_lengths(4000)

    def imbalance(plan):
        shares = []
        for batch in range(8):
            costs = [np.sum(plan.row(batch * 32 + i).tokens_S ** 2.0) for i in range(32)]
            halves = np.reshape(costs, (8, 4)).sum(axis=1)
            shares.append(halves.max() / halves.mean())
        return np.mean(shares) - 1

    unbalanced = imbalance(make_plan(lengths, window=1000, rows_per_batch=1, drop=drop))
    assert imbalance(make_plan(lengths, window=1000, rows_per_batch=32, drop=drop)) < 0.5 * unbalanced


def test_captions_are_chosen_among_those_that_fit_and_all_are_seen():
    lengths = Lengths(
        tokens_N=np.full(6, 20),
        text_tokens_M=np.array([5, 100, 7] * 6),
        caption_start_N1=np.arange(0, 19, 3),
    )
    plan = make_plan(lengths)
    rows = [plan.row(number) for number in range(40)]
    seen = collections.Counter(np.concatenate([row.captions_S for row in rows]).tolist())
    assert seen.keys() == {0, 2}
    assert min(seen.values()) > 0.3 * sum(seen.values())
    text_N3 = lengths.text_tokens_M.reshape(6, 3)
    assert all(text_N3[row.samples_S, row.captions_S].sum() <= 64 for row in rows)
    assert not plan.rejected


def test_captions_are_drawn_as_often_as_their_weights_say_and_alike_without():
    count = 40
    weights_M = np.tile([1.0, 50.0, 3.0], count)
    lengths = Lengths(
        tokens_N=np.full(count, 20),
        text_tokens_M=np.tile([5, 100, 7], count),  # the second fits no row, whatever its weight
        caption_start_N1=np.arange(0, 3 * count + 1, 3),
        weights_M=weights_M,
    )
    chance_W = np.arange(1000) / 1000
    samples_W = np.arange(1000) % count
    chosen_W = make_plan(lengths)._choose_captions(samples_W, chance_W)
    np.testing.assert_array_equal(chosen_W, 3 * samples_W + np.where(chance_W < 0.25, 0, 2))
    alike = dataclasses.replace(lengths, text_tokens_M=np.full(3 * count, 5), weights_M=np.full(3 * count, 0.3))
    expected_W = 3 * samples_W + np.floor(3 * chance_W).astype(int)
    np.testing.assert_array_equal(make_plan(alike)._choose_captions(samples_W, chance_W + 1e-6), expected_W)
    without = dataclasses.replace(alike, weights_M=None)
    np.testing.assert_array_equal(make_plan(without)._choose_captions(samples_W, chance_W), expected_W)
    assert contents(make_plan(without), 0, 20) == contents(make_plan(alike), 0, 20)


def test_samples_that_fit_no_row_are_named_and_never_drawn():
    lengths = Lengths(
        tokens_N=np.array([20, 200, 20, 20]),
        text_tokens_M=np.array([5, 5, 70, 90, 5]),
        caption_start_N1=np.array([0, 1, 2, 4, 5]),
    )
    plan = make_plan(lengths)
    assert [item.sample for item in plan.rejected] == [1, 2]
    assert "200 tokens" in plan.rejected[0].reason
    assert "70 text tokens" in plan.rejected[1].reason
    assert {sample for row, *_ in contents(plan, 0, 30) for sample in row} == {0, 3}


def test_only_rejections_of_samples_in_the_mix_are_reported():
    lengths = Lengths(tokens_N=np.array([200, 20, 300]), text_tokens_M=np.ones(3, int), caption_start_N1=np.arange(4))
    plan = make_plan(lengths, pools=[Pool(ids_N=np.array([1, 2]), share=1.0)])
    assert [item.sample for item in plan.rejected] == [2]


def test_a_set_of_which_nothing_fits_is_refused():
    lengths = Lengths(tokens_N=np.array([300]), text_tokens_M=np.array([1]), caption_start_N1=np.array([0, 1]))
    with pytest.raises(UserError, match="300 tokens do not fit a row of 128"):
        make_plan(lengths)
