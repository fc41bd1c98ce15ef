import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.diffusion import grids, solvers
from sora_jax.diffusion.grids import Grid

# The first three levels, the last two, and the thousandths told of them, by grid, steps and shift.
GOLDEN = {
    ("wan", 50, 5.0): ((0.999800, 0.995732, 0.991530, 0.172265, 0.092507), (999, 995, 991, 172, 92)),
    ("diffusers", 50, 5.0): ((0.999999, 0.995939, 0.991744, 0.175969, 0.096778), (999, 995, 991, 175, 96)),
    ("wan", 40, 12.0): ((0.999917, 0.997783, 0.995546, 0.386847, 0.235110), (999, 997, 995, 386, 235)),
    ("diffusers", 40, 12.0): ((0.999999, 0.997870, 0.995638, 0.391810, 0.242431), (999, 997, 995, 391, 242)),
    ("wan", 40, 5.0): ((0.999800, 0.994695, 0.989377, 0.208160, 0.113533), (999, 994, 989, 208, 113)),
    ("wan", 4, 3.0): ((0.999666, 0.899640, 0.749625, 0.749625, 0.499667), (999, 899, 749, 749, 499)),
    ("diffusers", 4, 3.0): ((0.999999, 0.900120, 0.750375, 0.750375, 0.500999), (999, 900, 750, 750, 500)),
}


@pytest.mark.parametrize(("way", "golden"), GOLDEN.items())
def test_levels_and_thousandths_are_those_of_the_public_code(way, golden):
    name, steps, shift = way
    grid = Grid(name=name, shift=shift)
    sigma = grid.levels(steps)
    chosen = np.array([*sigma[:3], *sigma[-3:-1]])
    assert len(sigma) == steps + 1
    assert sigma[-1] == 0
    np.testing.assert_allclose(chosen, golden[0], rtol=0, atol=1e-6)
    assert tuple(grids.times(chosen)) == golden[1]
    scheduled = grid.schedule(steps)
    np.testing.assert_array_equal(scheduled, sigma.astype(np.float32))
    told = np.asarray(grid.told(scheduled, steps))
    np.testing.assert_allclose(told * 1000, grids.times(sigma), rtol=1e-6)


def test_experts_share_the_steps_at_the_boundary():
    assert Grid(name="wan", shift=12.0).above(0.875, 40) == Grid(name="diffusers", shift=12.0).above(0.875, 40) == 26
    assert Grid(name="wan", shift=5.0).above(0.9, 40) == 15
    assert Grid(name="diffusers", shift=3.0).above(0.9, 4) == 2  # 900 itself is above
    assert Grid(name="wan", shift=3.0).above(0.9, 4) == 1
    assert Grid(name="wan", shift=5.0).above(0.875, 40, start=0.1) == 0


def test_a_schedule_may_start_part_of_the_way():
    start = jnp.array([1.0, 0.5])
    grid = Grid(name="wan", shift=5.0)
    found = np.asarray(grid.schedule(10, start=start))
    np.testing.assert_array_equal(found[:, 0], grid.levels(10).astype(np.float32))
    even = 0.5 * np.float32(0.999)
    assert found[0, 1] == pytest.approx(5 * even / (1 + 4 * even), rel=1e-6)
    told = np.asarray(grid.told(jnp.asarray(found), 10)) * 1000
    np.testing.assert_allclose(told, np.round(told), atol=1e-4)
    assert (told <= found * 1000).all()
    assert found[-1].tolist() == [0.0, 0.0]


def test_what_is_no_schedule_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        Grid(name="wan", shift=5.0).levels(0)
    with pytest.raises(UserError, match="not one of: wan, diffusers"):
        Grid(name="karras", shift=5.0)
    with pytest.raises(UserError, match="more than 0"):
        Grid(name="wan", shift=0.0)


@pytest.mark.parity
@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [4, 8, 50])
def test_the_schedule_and_the_way_are_those_of_diffusers(steps, shift):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(steps)
    grid = Grid(name="diffusers", shift=shift)
    sigma = grid.schedule(steps)
    np.testing.assert_allclose(sigma, scheduler.sigmas.numpy(), rtol=0, atol=1e-7)
    told = grid.told(sigma[:-1], steps)
    np.testing.assert_allclose(np.asarray(told) * 1000, scheduler.timesteps.numpy(), rtol=1e-6)
    start = np.random.default_rng(0).standard_normal((1, 3, 5)).astype(np.float32)

    def velocity(x, level):
        return np.float32(0.7) * x + (x * x * np.float32(0.1) - np.float32(0.4)) * level

    wanted = torch.from_numpy(start)
    for time, level in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        wanted = scheduler.step(velocity(wanted, level), time, wanted, return_dict=False)[0]
    found = solvers.solve(velocity, jnp.asarray(start), sigma, method="unipc")
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-5)
