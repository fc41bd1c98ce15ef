"""Causal convolutions and the resampling steps of the autoencoder, against 3D convolutions and slow loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.core.rng import Rngs
from sora_jax.nn import conv


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference(x_BTHWC, kernel, stride):
    """A 3D convolution that pads time on the left alone and keeps every frame."""
    taps, *sides = kernel.shape[:3]
    spatial = [((side - 1) // 2, side // 2) if stride == 1 else (0, side // 2) for side in sides]
    return jax.lax.conv_general_dilated(
        x_BTHWC,
        kernel,
        (1, stride, stride),
        [(taps - 1, 0), *spatial],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision="highest",
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1), (2, 3, 1)])
@pytest.mark.parametrize(("frames", "channels"), [(1, 3), (2, 3), (2, 50), (4, 3), (4, 50)])
def test_a_causal_convolution_is_a_3d_convolution(kernel, stride, frames, channels):
    x, weights = draw(2, frames, 6, 4, channels), draw(*kernel, channels, 5, seed=1)
    module = conv.CausalConv(channels, 5, kernel, stride=stride, rngs=Rngs(0))
    module.kernel[...] = jnp.asarray(weights / channels)
    got = jax.jit(lambda x: module(x, conv.Past()))(x)
    expected = jax.jit(functools.partial(reference, stride=stride))(x, weights / channels)
    assert got.shape == expected.shape == (2, frames, 6 // stride, 4 // stride, 5)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@settings(max_examples=10)
@given(st.integers(1, 5), st.integers(0, 4))
def test_a_frame_does_not_see_later_ones(frames, changed):
    x, weights = draw(1, frames, 4, 4, 2), draw(3, 3, 3, 2, 2, seed=1)
    other = x.copy()
    other[:, min(changed, frames - 1) :] += 1
    module = conv.CausalConv(2, 2, rngs=Rngs(0))
    module.kernel[...] = jnp.asarray(weights)
    first, second = (np.asarray(module(jnp.asarray(z), conv.Past())) for z in (x, other))
    same = min(changed, frames - 1)
    np.testing.assert_array_equal(first[:, :same], second[:, :same])
    assert not np.array_equal(first[:, same], second[:, same]), "a frame sees itself"


def test_a_module_adds_its_bias_and_may_start_as_zero():
    module = conv.CausalConv(3, 4, rngs=Rngs(0))
    module.bias[...] = jnp.arange(4.0)
    x = jnp.asarray(draw(1, 2, 4, 4, 3))
    np.testing.assert_allclose(module(x, conv.Past()), reference(x, module.kernel[...], 1) + jnp.arange(4.0), atol=1e-5)
    nothing = conv.CausalConv(3, 4, std_scale=0.0, rngs=Rngs(0))
    np.testing.assert_array_equal(nothing(x, conv.Past()), jnp.zeros((1, 2, 4, 4, 4)))


def test_the_norm_is_of_each_position_alone():
    norm = conv.ChannelNorm(5)
    norm.scale[...] = jnp.arange(1.0, 6.0)
    x = draw(2, 3, 4, 4, 5)
    rms = np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True))
    np.testing.assert_allclose(norm(jnp.asarray(x)), x / rms * np.arange(1, 6), rtol=1e-5)
    assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
    assert np.all(np.isfinite(norm(jnp.zeros((1, 1, 1, 1, 5)))))


def test_halving_time_keeps_the_first_frame_and_convolves_each_pair_with_its_past():
    module = conv.CausalConv(3, 3, (3, 1, 1), rngs=Rngs(0))
    module.bias[...] = jnp.arange(3.0)
    x, weights = draw(2, 7, 2, 2, 3), np.asarray(module.kernel[...])[:, 0, 0]
    halved = np.asarray(conv.halve_time(jnp.asarray(x), module, conv.Past()))
    assert halved.shape == (2, 4, 2, 2, 3)
    np.testing.assert_array_equal(halved[:, 0], x[:, 0])
    for frame in (1, 2, 3):
        expected = sum(x[:, 2 * frame - 2 + tap] @ weights[tap] for tap in range(3)) + np.arange(3)
        np.testing.assert_allclose(halved[:, frame], expected, atol=1e-5)


def test_doubling_time_keeps_the_first_frame_and_makes_two_of_each_other():
    module = conv.CausalConv(3, 6, (3, 1, 1), rngs=Rngs(0))
    x, weights = draw(2, 4, 2, 2, 3), np.asarray(module.kernel[...])[:, 0, 0]
    doubled = np.asarray(conv.double_time(jnp.asarray(x), module, conv.Past()))
    assert doubled.shape == (2, 7, 2, 2, 3)
    np.testing.assert_array_equal(doubled[:, 0], x[:, 0])
    past = np.concatenate([np.zeros_like(x[:, :2]), x[:, 1:]], axis=1)
    for frame in (1, 2, 3):
        both = sum(past[:, frame - 1 + tap] @ weights[tap] for tap in range(3))
        np.testing.assert_allclose(doubled[:, 2 * frame - 1], both[..., :3], atol=1e-5)
        np.testing.assert_allclose(doubled[:, 2 * frame], both[..., 3:], atol=1e-5)
    image = jnp.asarray(x[:, :1])
    np.testing.assert_array_equal(conv.double_time(image, module, conv.Past()), image)


def test_doubling_space_repeats_every_pixel():
    x = draw(1, 2, 2, 3, 1)
    doubled = np.asarray(conv.double_space(jnp.asarray(x)))
    np.testing.assert_array_equal(doubled, x.repeat(2, axis=2).repeat(2, axis=3))


def slow_fold(x, out_dim, time, space):
    """Each output is a mean of in_dim time space² / out_dim neighbours, channel-major; frames before the clip are 0."""
    batch, frames, height, width, channels = x.shape
    padded = np.concatenate([np.zeros((batch, -frames % time, height, width, channels)), x], axis=1)
    group = channels * time * space * space // out_dim
    out = np.zeros((batch, padded.shape[1] // time, height // space, width // space, out_dim))
    for b, t, h, w in np.ndindex(out.shape[:4]):
        block = padded[b, t * time : (t + 1) * time, h * space : (h + 1) * space, w * space : (w + 1) * space]
        flat = np.moveaxis(block, -1, 0).reshape(-1)
        out[b, t, h, w] = flat.reshape(out_dim, group).mean(axis=1)
    return out


@pytest.mark.parametrize(
    ("time", "space", "in_dim", "out_dim"), [(2, 1, 4, 4), (1, 2, 4, 8), (2, 2, 4, 8), (1, 1, 6, 3)]
)
def test_the_shortcut_down_is_a_mean_of_neighbours(time, space, in_dim, out_dim):
    x = draw(2, 5, 4, 6, in_dim)
    folded = conv.fold_mean(jnp.asarray(x), out_dim, time=time, space=space)
    assert folded.shape == (2, 1 + 4 // time, 4 // space, 6 // space, out_dim)
    np.testing.assert_allclose(folded, slow_fold(x, out_dim, time, space), atol=1e-6)


@pytest.mark.parametrize(
    ("time", "space", "in_dim", "out_dim"), [(2, 1, 4, 4), (1, 2, 8, 4), (2, 2, 8, 4), (1, 1, 3, 6)]
)
def test_the_shortcut_up_is_the_reverse_of_the_one_down(time, space, in_dim, out_dim):
    x = draw(2, 3, 2, 4, in_dim)
    unfolded = conv.unfold_repeat(jnp.asarray(x), out_dim, time=time, space=space, is_start=True)
    assert unfolded.shape == (2, 1 + 2 * time, 2 * space, 4 * space, out_dim)
    back = conv.fold_mean(unfolded, in_dim, time=time, space=space)
    # Of the first block only its last frame exists, so its mean is over zeros too.
    np.testing.assert_allclose(back[:, 1:], x[:, 1:], atol=1e-6)
    held = np.full_like(x, 2.5)
    got = conv.unfold_repeat(jnp.asarray(held), out_dim, time=time, space=space, is_start=False)
    np.testing.assert_array_equal(got, np.full((2, 3 * time, 2 * space, 4 * space, out_dim), 2.5))


def in_chunks(layer, x, cuts):
    """Returns what `layer(chunk, past)` gives for a clip that is cut after the frames `cuts`."""
    kept, results = None, []
    for chunk in np.split(x, cuts, axis=1):
        past = conv.Past(kept)
        results.append(np.asarray(layer(jnp.asarray(chunk), past)))
        kept = past.after
    return np.concatenate(results, axis=1)


LAYERS = {
    "convolution": lambda module, x, past: module(x, past),
    "halving": lambda module, x, past: conv.halve_time(x, module, past),
    "doubling": lambda module, x, past: conv.double_time(x, module, past),
    "shortcut down": lambda _, x, past: conv.fold_mean(x, 4, time=2, space=1),
    "shortcut up": lambda _, x, past: conv.unfold_repeat(x, 4, time=2, space=1, is_start=past.is_start),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("cuts", [[1, 3, 5, 7], [1, 7], [5], [3, 5]])
def test_chunks_give_the_numbers_of_the_whole(name, cuts):
    module = conv.CausalConv(4, 8 if name == "doubling" else 4, (3, 1, 1), rngs=Rngs(0))
    x = draw(2, 9, 2, 2, 4)
    whole = in_chunks(lambda x, past: LAYERS[name](module, x, past), x, [])
    np.testing.assert_allclose(in_chunks(lambda x, past: LAYERS[name](module, x, past), x, cuts), whole, atol=1e-6)


def test_the_3d_path_of_other_machines_gives_the_same_numbers(monkeypatch):
    """On CPU the default branch never runs, so it is taken by force."""
    x, module = jnp.asarray(draw(1, 5, 6, 4, 3)), conv.CausalConv(3, 4, rngs=Rngs(0))
    expected = (
        module(x, conv.Past()),
        conv.halve_time(x, conv.CausalConv(3, 3, (3, 1, 1), rngs=Rngs(1)), conv.Past()),
    )
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    got = module(x, conv.Past()), conv.halve_time(x, conv.CausalConv(3, 3, (3, 1, 1), rngs=Rngs(1)), conv.Past())
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 5, 6), (7, 4, 9)])
@pytest.mark.parametrize(
    ("side", "stride"), [(1, (1, 1)), (3, (1, 1)), (3, (1, 2)), (3, (2, 2)), (7, (2, 2)), (1, (2, 3))]
)
def test_the_convolution_that_also_looks_ahead_is_that_of_xla(size, side, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(side, side, side, 3, 4)).astype(np.float32)
    numbers, strides = ("NTHWC", "THWIO", "NTHWC"), (stride[0], stride[1], stride[1])
    expected = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers)
    found = conv.same_conv(jnp.asarray(x), jnp.asarray(kernel), stride=stride)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
