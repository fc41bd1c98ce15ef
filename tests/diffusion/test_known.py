"""Known tokens: each family against its definition, invariants of every draw, and the tables of levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.core.errors import UserError
from sora_jax.diffusion import known
from sora_jax.video import shapes
from tests import small

B, L, S = 2, 96, 4
FAMILIES = ("none", "first", "last", "ends", "random_frames", "region")
draw_known = jax.jit(known.draw_known, static_argnames="config")


def only(family):
    return small.known_config(**({name: 0.0 for name in FAMILIES} | {family: 1.0}))


def pack(grids):
    """Returns the geometry of rows of segments, as the pack has it; grids is a list of grids per row."""
    position_BL3 = np.zeros((B, L, 3), np.float32)
    segment_BL = np.zeros((B, L), np.int32)
    grid_BS3 = np.zeros((B, S, 3), np.int32)
    time_step_BS = np.zeros((B, S), np.float32)
    for row, row_grids in enumerate(grids):
        start = 0
        for slot, grid in enumerate(row_grids):
            step = 0.3 + 0.4 * slot
            end = start + shapes.count(grid)
            position_BL3[row, start:end] = shapes.positions(grid, step)
            segment_BL[row, start:end] = slot + 1
            grid_BS3[row, slot], time_step_BS[row, slot] = grid, step
            start = end
    tables = {"grid_BS3": grid_BS3, "time_step_BS": time_step_BS}
    return {"position_BL3": position_BL3, "segment_BL": segment_BL, **tables}


GRIDS = [[(7, 2, 3), (1, 3, 4), (2, 2, 2)], [(1, 1, 1), (3, 3, 3), (12, 1, 1), (5, 2, 2)]]
PACK = pack(GRIDS)


def segments_of(known_BL):
    """Yields (grid, known_THW) of every segment."""
    for row, row_grids in enumerate(GRIDS):
        start = 0
        for grid in row_grids:
            end = start + shapes.count(grid)
            yield grid, np.asarray(known_BL)[row, start:end].reshape(grid)
            start = end


def draws(family, count):
    for seed in range(count):
        yield draw_known(jax.random.key(seed), **PACK, config=only(family))


grids = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.tuples(*[st.lists(grids, max_size=S)] * B),
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 10_000),
)
def test_something_is_always_left_to_predict_and_padding_is_never_known(rows, family, seed):
    fitting = [[g for i, g in enumerate(row) if sum(map(shapes.count, row[: i + 1])) <= L] for row in rows]
    batch = pack(fitting)
    known_BL = np.asarray(draw_known(jax.random.key(seed), **batch, config=only(family)))
    assert not known_BL[batch["segment_BL"] == 0].any()
    for row, row_grids in enumerate(fitting):
        for slot in range(len(row_grids)):
            assert not known_BL[row, batch["segment_BL"][row] == slot + 1].all()


def test_none_gives_nothing():
    assert not any(known_BL.any() for known_BL in draws("none", 5))


@pytest.mark.parametrize("family", ["first", "last", "ends", "random_frames"])
def test_frame_families_give_whole_frames_and_leave_images_alone(family):
    given_frames = set()
    for known_BL in draws(family, 40):
        for grid, known_THW in segments_of(known_BL):
            frames = known_THW.all((1, 2))
            np.testing.assert_array_equal(known_THW.any((1, 2)), frames)
            if grid[0] == 1:
                assert not frames.any()
                continue
            # A drawn segment of random frames may come out whole, and is then released.
            assert frames.any() or family == "random_frames"
            head = int(np.argmin(frames))
            tail = int(np.argmin(frames[::-1]))
            if family == "first":
                assert frames.sum() == head
            if family == "last":
                assert frames.sum() == tail
            if family == "ends":
                assert frames.sum() == head + tail
                assert grid[0] == 2 or (head and tail)
            if grid[0] == 7:
                given_frames.add(tuple(frames.tolist()))
    # Every count of 1 ... 6 for one end; for both ends and random frames, many shapes.
    assert len(given_frames) == 6 if family in ("first", "last") else len(given_frames) > 8


def test_random_frames_are_not_only_the_ends():
    frames = [
        known_THW.all((1, 2))
        for known_BL in draws("random_frames", 60)
        for grid, known_THW in segments_of(known_BL)
        if grid[0] == 12
    ]
    share_T = np.mean(frames, axis=0)
    assert share_T.min() > 0.1
    assert share_T.max() < 0.6
    assert sum(np.any(f[1:-1] & ~f[:-2] & ~f[2:]) for f in frames) > 10  # lone frames in the middle


def test_of_two_random_frames_none_or_one_is_given_in_half_of_draws_each():
    batch = pack([[(2, 1, 1)] * S] * B)
    counts = []
    for seed in range(200 // (B * S)):
        known_BL = np.asarray(draw_known(jax.random.key(seed), **batch, config=only("random_frames")))
        counts += [known_BL[row, batch["segment_BL"][row] == slot + 1].sum() for row in range(B) for slot in range(S)]
    assert set(counts) == {0, 1}
    assert 0.4 < np.mean(counts) < 0.6


def test_region_is_a_rectangle_or_its_complement_in_every_frame():
    inside = outside = 0
    for known_BL in draws("region", 30):
        for grid, known_THW in segments_of(known_BL):
            known_HW = known_THW[0]
            assert (known_THW == known_HW).all()
            if grid != (3, 3, 3) or not known_HW.any():
                continue
            boxes = []
            for mask in (known_HW, ~known_HW):
                rows, columns = mask.any(1), mask.any(0)
                boxes.append(
                    bool(
                        (mask == np.outer(rows, columns)).all()
                        and (np.diff(np.flatnonzero(rows)) == 1).all()
                        and (np.diff(np.flatnonzero(columns)) == 1).all()
                    )
                )
            assert any(boxes)
            inside += boxes[0]
            outside += not boxes[0]
    assert inside > 3
    assert outside > 0


def test_families_come_in_their_shares_and_one_given_frame_is_commonest():
    config = small.known_config(none=0.5, first=0.5, last=0, ends=0, random_frames=0, region=0)
    grid_BS3 = jnp.full((50, 80, 3), 8)
    head = np.asarray(known.draw_pattern(jax.random.key(0), grid_BS3, config).head_BS)
    counts = np.bincount(head.reshape(-1), minlength=8) / head.size
    expected = 0.5 * np.log2(1 + 1 / np.arange(1, 8)) / 3
    np.testing.assert_allclose(counts, [0.5, *expected], atol=0.03)


def test_a_written_pattern_gives_its_frames_at_any_frame_rate():
    head_BS = jnp.zeros((B, S), jnp.int32).at[0, 0].set(2)
    tail_BS = jnp.zeros((B, S), jnp.int32).at[1, 3].set(1)
    pattern = known.Pattern.empty(B, S)._replace(head_BS=head_BS, tail_BS=tail_BS)
    known_BL = known.known_tokens(pattern, **PACK)
    frames = {grid: known_THW.all((1, 2)).tolist() for grid, known_THW in segments_of(known_BL)}
    assert frames[(7, 2, 3)] == [True] * 2 + [False] * 5
    assert frames[(5, 2, 2)] == [False] * 4 + [True]
    assert int(known_BL.sum()) == 2 * 6 + 4


def test_a_segment_whose_unknown_tokens_were_dropped_is_released():
    """Token drop may take every token that was to be predicted."""
    batch = {**PACK, "segment_BL": PACK["segment_BL"].copy()}
    last_frames = (batch["position_BL3"][0, :, 0] > 0.1) & (batch["segment_BL"][0] == 1)
    batch["segment_BL"][0, last_frames] = 0
    for seed in range(5):
        known_BL = np.asarray(draw_known(jax.random.key(seed), **batch, config=only("first")))
        assert not known_BL[0, batch["segment_BL"][0] == 1].any()


def test_levels_reach_the_tokens_they_belong_to():
    rng = np.random.default_rng(0)
    sigma_BS, known_sigma_BS = rng.uniform(size=(2, B, S)).astype(np.float32)
    segment_BL = PACK["segment_BL"]
    known_BL = (rng.uniform(size=(B, L)) < 0.5) & (segment_BL > 0)
    levels_BG = known.level_table(jnp.asarray(sigma_BS), jnp.asarray(known_sigma_BS))
    level_BL = known.level_index(jnp.asarray(segment_BL), jnp.asarray(known_BL), num_segments=S)
    sigma_BL = np.asarray(known.token_level(levels_BG, level_BL))
    for row, token in np.ndindex(B, L):
        if segment := segment_BL[row, token]:
            table = known_sigma_BS if known_BL[row, token] else sigma_BS
            assert sigma_BL[row, token] == table[row, segment - 1]


def test_known_levels_are_slight():
    level_BS = known.draw_known_level(jax.random.key(0), (30, 30), small.known_config(max_level=0.1))
    assert level_BS.shape == (30, 30)
    assert float(level_BS.min()) >= 0
    assert 0.09 < float(level_BS.max()) < 0.1


def test_per_token_keeps_trailing_axes():
    table = jnp.arange(B * S * 2 * 3).reshape(B, S, 2, 3)
    found = np.asarray(known.per_token(table, jnp.asarray(PACK["segment_BL"])))
    expected = np.stack([np.asarray(table)[b, np.maximum(PACK["segment_BL"][b] - 1, 0)] for b in range(B)])
    np.testing.assert_array_equal(found, expected)


def test_bad_shares_are_named():
    with pytest.raises(UserError, match=r"sum to 1\.5, not 1.*first 0\.5"):
        small.known_config(none=1.0, first=0.5, last=0, ends=0, random_frames=0, region=0)
    with pytest.raises(UserError, match="max_level"):
        small.known_config(max_level=1.0)


def test_the_draw_is_a_function_of_its_key():
    one, two, other = (draw_known(jax.random.key(seed), **PACK, config=only("random_frames")) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert np.any(np.asarray(one) != np.asarray(other))
