"""Averages that a stage keeps on the way: which of them stay."""

import types

import jax.numpy as jnp

from sora_jax.train.snapshots import Snapshots, find_snapshots


def keep(folder, moments, steps):
    kept = Snapshots(folder, moments)
    for step in steps:
        kept.save(step, types.SimpleNamespace(ema={"width_0.1": {"x": jnp.ones(2)}}, updates=jnp.int32(step)), {})


def test_all_stay_where_fewer_are_kept_from_some_step_on(tmp_path):
    keep(tmp_path, {1, 2, 3, 4, 6, 8}, range(1, 5))
    keep(tmp_path, {4, 8}, range(5, 9))
    assert [one.updates for one in find_snapshots(tmp_path)] == [1, 2, 3, 4, 8]
