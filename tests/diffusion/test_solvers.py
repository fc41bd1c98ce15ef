"""Solvers on fields with known solutions: exactness, order of convergence, and known tokens left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.diffusion import known, noise_levels, path, solvers
from tests import small
from tests.conftest import ROOT

METHODS = ("euler", "heun", "dpm", "unipc", "stochastic")


def even(steps):
    return jnp.linspace(1.0, 0.0, steps + 1)


def drawn_like(x, *, apart=True):
    """Returns noise in the shape of `x` for each step, the same for all where steps are not to be told apart."""
    return lambda number, noise=None: jax.random.normal(jax.random.fold_in(jax.random.key(9), number * apart), x.shape)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_straight_field_is_solved_exactly(method, steps):
    clean_BLP, noise_BLP = jax.random.normal(jax.random.key(0), (2, 1, 3, 2))
    field, draw = (lambda x, sigma: (x - clean_BLP) / sigma), drawn_like(noise_BLP)
    found = solvers.solve(field, noise_BLP, even(steps), method=method, renew=draw)
    np.testing.assert_allclose(found, clean_BLP, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_perfect_clean_prediction_is_reached(method):
    clean_BLP, noise_BLP = jax.random.normal(jax.random.key(0), (2, 1, 3, 2))
    config = small.path_config(prediction="clean")

    def velocity(x, sigma):
        return path.to_velocity(clean_BLP, x_sigma=x, sigma=sigma, config=config)

    found = solvers.solve(velocity, noise_BLP, even(7), method=method, renew=drawn_like(noise_BLP))
    np.testing.assert_allclose(found, clean_BLP, atol=1e-5)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("dpm", 2), ("unipc", 3)])
def test_order_of_convergence_on_a_gaussian(method, order):
    """Data N(0, s^2) has velocity x (sigma - (1 - sigma) s^2) / variance, and x grows as the root of the variance."""

    def variance(sigma):
        return (1 - sigma) ** 2 * 0.25 + sigma**2

    def velocity(x, sigma):
        return x * (sigma - (1 - sigma) * 0.25) / variance(sigma)

    # Inside (0, 1): at its ends the steps of the two last methods are infinitely long, and of first order.
    start, end = 0.95, 0.05
    exact = 1.5 * (variance(end) / variance(start)) ** 0.5
    x, solve = jnp.full((1, 1, 1), 1.5), jax.jit(solvers.solve, static_argnums=0, static_argnames="method")
    found = [solve(velocity, x, jnp.linspace(start, end, steps + 1), method=method) for steps in (32, 64, 128)]
    errors = np.abs(np.asarray(found).ravel() - exact)
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), order, atol=0.3)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("method", "peer", "options"),
    [
        ("euler", "FlowMatchEulerDiscreteScheduler", {}),
        ("dpm", "DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        ("unipc", "UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_steps_are_those_of_diffusers(method, peer, options, steps):
    import diffusers
    import torch

    mixing = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32)
    scheduler = getattr(diffusers, peer)(**options)
    scheduler.set_timesteps(steps)
    theirs = torch.from_numpy(x)
    for sigma, time in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        slope = torch.sin(theirs @ torch.from_numpy(mixing)) * (1 + sigma) + theirs
        theirs = scheduler.step(slope, time, theirs).prev_sample

    def velocity(x, sigma):
        return jnp.sin(jnp.dot(x, mixing, precision="highest")) * (1 + sigma) + x

    ours = solvers.solve(velocity, jnp.asarray(x), jnp.asarray(scheduler.sigmas.numpy()), method=method)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def test_evaluations_never_happen_at_sigma_zero():
    """A velocity that is infinite at sigma = 0 does no harm: the last step is Euler's."""
    for method in METHODS:
        x = jnp.ones((1, 2, 2))
        found = solvers.solve(lambda x, sigma: x / sigma, x, even(4), method=method, renew=drawn_like(x))
        np.testing.assert_allclose(found, 0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_levels_per_token_and_per_group_agree_and_known_tokens_stand_still(method):
    segment_BL = jnp.array([[1, 1, 2, 2, 2, 0]])
    known_BL = jnp.array([[True, False, False, True, False, False]])
    schedule = noise_levels.schedule(5, jnp.array([[2, 300]]), small.noise_config(shift_base_tokens=10.0))
    levels = known.level_table(schedule, jnp.array([[0.0, 0.05]]))
    level_BL = known.level_index(segment_BL, known_BL, num_segments=2)
    x_BLP = jax.random.normal(jax.random.key(1), (1, 6, 3))

    def velocity(x, sigma_BL):
        return jnp.sin(x) * (1 + sigma_BL[..., None]) + jnp.mean(x)

    def grouped_velocity(x, levels_BG):
        assert levels_BG.shape == (1, 4)
        return velocity(x, known.token_level(levels_BG, level_BL))

    solve, draw = jax.jit(solvers.solve, static_argnums=0, static_argnames=("method", "renew")), drawn_like(x_BLP)
    by_group = solve(grouped_velocity, x_BLP, levels, method=method, level_BL=level_BL, renew=draw)
    per_token = jax.vmap(known.token_level, in_axes=(0, None))(levels, level_BL)
    by_token = solve(velocity, x_BLP, per_token, method=method, renew=draw)
    np.testing.assert_allclose(by_group, by_token, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(by_group[known_BL], x_BLP[known_BL])
    assert np.all(by_group[0, [1, 2, 4]] != x_BLP[0, [1, 2, 4]])


@pytest.mark.parametrize("method", METHODS)
def test_a_velocity_that_jumps_is_solved_piece_by_piece(method):
    """The whole way is that of one solve up to the jump and another from there, each token at its own level."""
    sigmas = jnp.linspace(1.0, 0.0, 11)[:, None] ** jnp.array([1.0, 1.5])
    jump = sigmas[6]

    def piece(sigma):
        return sigma <= jump

    def velocity(x, sigma, memory):
        return jnp.sin(x) * (1 + sigma[..., None]) + 5 * piece(sigma)[..., None], memory

    x_LP = jax.random.normal(jax.random.key(1), (2, 3))
    draw = drawn_like(x_LP, apart=False)
    whole = solvers.solve_remembering(velocity, x_LP, sigmas, (), method=method, piece=piece, renew=draw)

    def above(x, sigma):
        return jnp.sin(x) * (1 + sigma[..., None])

    half = solvers.solve(above, x_LP, sigmas[:7], method=method, renew=draw)
    apart = solvers.solve(lambda x, sigma: above(x, sigma) + 5, half, sigmas[6:], method=method, renew=draw)
    np.testing.assert_allclose(whole, apart, rtol=1e-5, atol=1e-6)
    careless = solvers.solve_remembering(velocity, x_LP, sigmas, (), method=method, renew=draw)
    assert (np.abs(careless - apart).max() > 1e-2) == (method not in ("euler", "stochastic"))


def test_a_stochastic_step_goes_to_the_clean_prediction_and_back_with_the_noise_of_its_number():
    x, clean, sigmas = jnp.full((2, 3), 4.0), jnp.full((2, 3), 0.5), jnp.array([0.9, 0.6, 0.2])
    noise = [np.asarray(drawn_like(x)(number)) for number in range(2)]

    def velocity(x, sigma):
        return (x - clean * (1 + sigma)) / sigma

    found = solvers.solve(velocity, x, sigmas, method="stochastic", renew=drawn_like(x))
    np.testing.assert_allclose(found, 0.8 * 0.5 * 1.6 + 0.2 * noise[1], rtol=1e-5)
    first = solvers.solve(velocity, x, sigmas[:2], method="stochastic", renew=drawn_like(x))
    np.testing.assert_allclose(first, 0.4 * 0.5 * 1.9 + 0.6 * noise[0], rtol=1e-5)


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="'ddim' is not one of: euler, heun, dpm, unipc, stochastic"):
        solvers.solve(lambda x, sigma: x, jnp.ones((1, 1, 1)), even(2), method="ddim")


def test_a_solver_is_added_as_the_documentation_says(monkeypatch):
    """Its field grows as sigma squared, of which a method of second order misses less the more steps there are."""
    section = (ROOT / "docs/extending.md").read_text(encoding="utf-8").partition("## Add a solver")[2]
    made = {}
    exec(section.partition("```python\n")[2].partition("```")[0], made)
    monkeypatch.setitem(solvers.METHODS, "midpoint", made["midpoint"])
    x = jnp.ones((1, 1, 1))
    found = [solvers.solve(lambda _, sigma: 3 * sigma**2, x, even(steps), method="midpoint") for steps in (4, 8, 16)]
    errors = np.abs(np.ravel(found))  # from 1 down by the integral of 3 sigma^2: to nothing
    np.testing.assert_allclose(errors[:-1] / errors[1:], 4, rtol=0.05)


@pytest.mark.parametrize("method", ["euler", "dpm", "unipc", "stochastic"])
def test_a_way_in_two_parts_is_the_same_way(method):
    x, sigmas = jnp.linspace(-1.0, 2.0, 6).reshape(1, 2, 3), even(7)

    def velocity(x, sigma, number):
        return jnp.sin(x) + sigma, number + 1

    renew = drawn_like(x)
    whole = solvers.walk(velocity, (x, 0), sigmas, method=method, renew=renew)
    carry = x, 0
    for steps in ((0, 3), (3, 7)):
        carry = solvers.walk(velocity, carry, sigmas, method=method, renew=renew, steps=steps)
    assert carry[1] == whole[1] == 7
    np.testing.assert_allclose(carry[0], whole[0], rtol=1e-6)
