"""The learning rate of a stage, and which parameters get which update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.checkpoints import leaves
from sora_jax.nn.scaling import rate_multiplier
from sora_jax.train.optimizer import OptimizerConfig, ScheduleConfig, is_matrix, learning_rate, make_optimizer

AXES = {
    "blocks.to_q.kernel": ("layers", "embed", "heads"),
    "blocks.to_q.bias": ("layers", "heads"),
    "conv.kernel": (None, None, None, "conv_in", "conv_out"),
    "head.kernel": ("embed", "patch"),
    "text.table": (None, "vocabulary", "embed"),
    "norm.scale": ("norm",),
}
SHAPES = {
    "blocks.to_q.kernel": (2, 6, 4),
    "blocks.to_q.bias": (2, 4),
    "conv.kernel": (1, 1, 2, 3, 6),
    "head.kernel": (4, 4),
    "text.table": (2, 3, 4),
    "norm.scale": (5,),
}
MATRICES = ["blocks.to_q.kernel", "conv.kernel", "head.kernel"]


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def config(name, **changes):
    base = {"b1": 0.9, "b2": 0.95, "weight_decay": 0.0, "clip_norm": 1e9}
    return OptimizerConfig(name=name, **base | changes)


def first_update(given, gradient=None):
    optimizer = make_optimizer(given, AXES)
    params = draw(0)
    return jax.jit(optimizer.update)(draw(1) if gradient is None else gradient, optimizer.init(params), params)


def slow_rate(config, step, steps):
    """The rate of a 0-based step: a rise up to step warmup - 1, a plateau, a fall that would end at step `steps`."""
    rise = min((step + 1) / config.warmup_steps, 1) if config.warmup_steps else 1
    begin = steps - config.decay_share * steps
    share = 0 if step <= begin else (step - begin) / max(config.decay_share * steps, 1)
    return config.learning_rate * rise * (1 + (config.final_share - 1) * min(share, 1))


SCHEDULES = st.builds(
    ScheduleConfig,
    learning_rate=st.just(2e-3),
    warmup_steps=st.integers(0, 20),
    decay_share=st.sampled_from([0.0, 0.01, 0.3, 0.5, 1.0]),
    final_share=st.sampled_from([0.0, 0.1, 1.0]),
)


@given(SCHEDULES, st.integers(100, 130), st.floats(0, 1))
def test_the_rate_is_the_slow_one(config, steps, share):
    step = min(int(share * steps), steps - 1)
    got = learning_rate(config, jnp.int32(step), steps)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, slow_rate(config, step, steps), rtol=1e-5)


def test_the_rate_at_its_corners():
    config = ScheduleConfig(learning_rate=1.0, warmup_steps=10, decay_share=0.5, final_share=0.1)
    rates = [float(learning_rate(config, jnp.int32(step), 100)) for step in (0, 4, 9, 30, 50, 75, 99)]
    np.testing.assert_allclose(rates, [0.1, 0.5, 1.0, 1.0, 1.0, 0.55, 0.118], rtol=1e-5)
    flat = ScheduleConfig(learning_rate=1.0, warmup_steps=0, decay_share=0.0, final_share=0.0)
    assert float(learning_rate(flat, jnp.int32(0), 100)) == float(learning_rate(flat, jnp.int32(98), 100)) == 1.0


def test_matrices_are_kernels():
    assert [name for name in AXES if is_matrix(name, AXES[name])] == MATRICES


def rows_and_columns(name, value):
    """Returns the matrices (layers, rows, columns) that a kernel stands for."""
    value = np.asarray(value)
    layers = value.shape[0] if AXES[name][0] == "layers" else 1
    return value.reshape(layers, -1, value.shape[-1])


def test_muon_makes_the_update_of_every_matrix_nearly_orthogonal_and_adam_does_the_rest():
    update, gradient = first_update(config("muon"))[0], draw(1)
    adam = optax.scale_by_adam(b1=0.9, b2=0.95, nesterov=True)
    expected, _ = adam.update(gradient, adam.init(gradient))
    for name in SHAPES:
        if name in MATRICES:
            for matrix in rows_and_columns(name, update[name]):
                values = np.linalg.svd(matrix, compute_uv=False)
                assert values.min() > 0.5 * values.max(), name
                rms = np.sqrt(np.mean(matrix**2))
                assert 0.1 < rms < 0.3, "as large as an update of Adam, whose learning rate it shares"
        else:
            np.testing.assert_allclose(update[name], expected[name], rtol=1e-3, err_msg=name)


def test_both_moments_decay_as_configured():
    for name, kept in (("adamw", MATRICES[0]), ("muon", "norm.scale")):
        state = first_update(config(name, b1=0.8, b2=0.7))[1]
        gradient = draw(1)[kept]
        (second,) = (tree[kept] for _, tree in optax.tree.get_all_with_path(state, "nu"))
        np.testing.assert_allclose(second, 0.3 * jnp.square(gradient), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_direction_is_uphill_and_at_learning_rate_one(name):
    """The step subtracts the direction times the rate."""
    update, gradient = first_update(config(name))[0], draw(1)
    for key in SHAPES:
        assert np.sum(update[key] * gradient[key]) > 0, key


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weights_decay_in_matrices_alone(name):
    plain, _ = first_update(config(name))
    decayed, _ = first_update(config(name, weight_decay=0.1))
    params = draw(0)
    for key in SHAPES:
        expected = 0.1 * params[key] if key in MATRICES else jnp.zeros_like(params[key])
        np.testing.assert_allclose(decayed[key] - plain[key], expected, atol=1e-6, err_msg=key)


def test_a_gradient_over_the_norm_is_scaled_down_and_one_under_it_is_left():
    gradient = draw(1)
    norm = optax.tree.norm(gradient)
    for clip, scale in ((float(norm) / 4, 0.25), (float(norm) * 4, 1.0)):
        state = first_update(config("adamw", clip_norm=clip), gradient)[1]
        moments = optax.tree.get(state, "mu")
        for key in SHAPES:
            np.testing.assert_allclose(moments[key], 0.1 * scale * gradient[key], rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_is_kept_under_the_names_of_parameters(name):
    """`optimizer_shardings` and checkpoints find moments by name."""
    state = make_optimizer(config(name), AXES).init(draw(0))
    found = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if names and leaf.shape == SHAPES.get(names[-1]):
            found.add(names[-1])
    assert found == SHAPES.keys()


def test_rates_of_another_width_multiply_updates_of_kernels_and_not_their_decay():
    given = config("muon", weight_decay=0.1)
    wide = ("blocks.to_q.kernel", "head.kernel")
    base = SHAPES | {"blocks.to_q.kernel": (2, 3, 2), "head.kernel": (2, 4)}
    params = draw(0)
    plain, other = (
        optimizer.update(draw(1), optimizer.init(params), params)[0]
        for optimizer in (make_optimizer(given, AXES), make_optimizer(given, AXES, base=base))
    )
    for parameter in SHAPES:
        decay = 0.1 * params[parameter] * (parameter in MATRICES)
        times = 1.0
        if parameter in wide:
            times = rate_multiplier(SHAPES[parameter], base[parameter], AXES[parameter], orthogonal=True)
            assert times < 1
        expected = times * (plain[parameter] - decay) + decay
        np.testing.assert_allclose(other[parameter], expected, rtol=1e-5, atol=1e-6)


def test_rates_of_their_own_width_need_nothing_of_the_state():
    given, params = config("muon"), draw(0)
    plain, other = make_optimizer(given, AXES).init(params), make_optimizer(given, AXES, base=SHAPES).init(params)
    assert leaves.by_name(plain).keys() == leaves.by_name(other).keys(), "checkpoints name them"
