"""The autoencoder is causal: a prefix of a clip is a prefix of its latent, and an image is a clip of one frame."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.models.autoencoder import Autoencoder, Head
from sora_jax.nn import conv
from sora_jax.nn.conv import Past
from tests import small


def config(**changes):
    own = {"patch": 2, "multipliers": (1, 2, 2), "space_down": (True, False), "channels": 3, "attention": True}
    return dataclasses.replace(small.AUTOENCODER, **own | changes)


KINDS = {
    "all": config(),
    "rounded": config(bottleneck="fsq", codes=5, remat=True, attention=False),
    "plain": config(attention=False, shortcuts=False, space_down=(False, True), time_down=(True, False)),
}


def random_model(kind):
    """Returns the structure and random parameters, also where training starts at zero or one."""
    structure, shapes, _ = abstract_model(lambda key: Autoencoder(KINDS[kind], rngs=Rngs(key)))
    noise = np.random.default_rng(0)
    scales = {name: (np.prod(leaf.shape[:-1]) or 1) ** -0.5 for name, leaf in shapes.items()}
    draws = {name: noise.normal(size=leaf.shape) * scales[name] for name, leaf in shapes.items()}
    return structure, {name: value.astype(np.float32) for name, value in draws.items()}


@functools.cache
def programs(kind):
    """Returns (moments, decode), jitted."""
    structure, params = random_model(kind)
    encode = jax.jit(lambda clip: merge_model(structure, params).moments(clip))
    decode = jax.jit(lambda latent: merge_model(structure, params).decode(latent))
    return encode, decode


def draw(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_of_a_clip_gives_a_prefix_of_its_latent(kind):
    stride, clip = KINDS[kind].time_stride, draw(1, 9, 8, 12, 3)
    encode = programs(kind)[0]
    whole = encode(clip)
    for frames in (1, 5):
        part = encode(clip[:, :frames])
        assert part.shape[1] == 1 + (frames - 1) // stride
        np.testing.assert_allclose(part, whole[:, : part.shape[1]], atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_of_a_latent_gives_a_prefix_of_its_clip(kind):
    stride, latent = KINDS[kind].time_stride, draw(1, 3, 2, 3, 3)
    decode = programs(kind)[1]
    whole = decode(latent)
    assert whole.shape[1] == 1 + 2 * stride
    np.testing.assert_allclose(decode(latent[:, :2]), whole[:, : 1 + stride], atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_frame_sees_a_later_one_and_each_sees_its_own(kind):
    encode, decode = programs(kind)
    stride, clip, latent = KINDS[kind].time_stride, draw(1, 9, 8, 12, 3), draw(1, 3, 2, 3, 3)
    later_clip, later_latent = clip.copy(), latent.copy()
    later_clip[:, 1 + stride :] *= -1
    later_latent[:, 2:] *= -1
    changed = np.abs(np.asarray(encode(clip) - encode(later_clip))).max(axis=(0, 2, 3, 4))
    assert changed[:2].max() == 0
    assert changed[2:].min() > 1e-3
    changed = np.abs(np.asarray(decode(latent) - decode(later_latent))).max(axis=(0, 2, 3, 4))
    assert changed[: 1 + stride].max() == 0
    assert changed[1 + stride :].min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 1)])
def test_any_size_on_the_stride_goes_through(kind, size):
    frames, rows, columns = size
    space, time = KINDS[kind].space_stride, KINDS[kind].time_stride
    encode, decode = programs(kind)
    clip = draw(2, 1 + (frames - 1) * time, rows * space, columns * space, 3)
    moments = encode(clip)
    assert moments.shape[:4] == (2, frames, rows, columns)
    assert decode(moments[..., :3]).shape == clip.shape


def test_clips_of_a_batch_do_not_mix():
    encode, decode = programs("all")
    clip, latent = draw(2, 9, 8, 12, 3), draw(2, 3, 2, 3, 3)
    np.testing.assert_allclose(encode(clip[1:]), encode(clip)[1:], atol=2e-5)
    np.testing.assert_allclose(decode(latent[1:]), decode(latent)[1:], atol=2e-5)


@functools.cache
def gradient(**changes):
    """Returns the gradient of a loss of all parameters of "all", with such changes of its config."""
    params = random_model("all")[1]
    structure = abstract_model(lambda key: Autoencoder(config(**changes), rngs=Rngs(key)))[0]

    def loss(params):
        model = merge_model(structure, params)
        return jnp.sum(jnp.square(model.decode(model.encode(draw(1, 5, 8, 8, 3))) - 0.3))

    assert ("remat" in str(jax.make_jaxpr(loss)(params))) == changes.get("remat", False)
    return jax.jit(jax.grad(loss))(params)


def test_every_parameter_matters():
    """A parameter without gradient would be one that the forward pass forgot."""
    assert [name for name, value in gradient().items() if not np.abs(value).max() > 0] == []


def test_a_head_tells_amplitudes_only_if_it_is_linear_too():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4, 4, 6)), jnp.float32)
    plain, linear = (Head(6, 2, linear=linear, rngs=Rngs(0)) for linear in (False, True))
    np.testing.assert_allclose(plain(3 * x, Past(is_whole=True)), plain(x, Past(is_whole=True)), atol=1e-5)
    assert linear.linear is not None
    added = linear(3 * x, Past(is_whole=True)) - plain(x, Past(is_whole=True))
    np.testing.assert_allclose(added, 3 * x @ linear.linear.kernel[0, 0, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "channels", "shape"),
    [
        pytest.param(
            (4, 8), 16, {"patch": 1, "width": 96, "multipliers": (1, 2, 4, 4), "decoder_width": 96}, id="f8t4c16"
        ),
        pytest.param(
            (4, 16), 48, {"patch": 2, "width": 160, "multipliers": (1, 2, 4, 4), "decoder_width": 256}, id="f16t4c48"
        ),
    ],
)
def test_the_shapes_of_the_public_autoencoders(stride, channels, shape):
    deep = {
        "blocks": 2,
        "decoder_blocks": 3,
        "attention": True,
        "shortcuts": shape["patch"] == 2,
        "patch_kernel": 3,
        "linear_heads": False,
    }
    down = {"space_down": (True,) * 3, "time_down": (False, True, True), "channels": channels}
    public = config(**shape | deep | down)
    assert (public.time_stride, public.space_stride) == stride
    structure, params, _ = abstract_model(lambda key: Autoencoder(public, rngs=Rngs(key)))

    def through(params, clip):
        model = merge_model(structure, params)
        latent = model.encode(clip)
        return latent, model.decode(latent)

    clip = jax.ShapeDtypeStruct((1, 9, 64, 96, 3), jnp.float32)
    latent, back = jax.eval_shape(through, params, clip)
    assert latent.shape == (1, 3, 64 // stride[1], 96 // stride[1], channels)
    assert back.shape == clip.shape


def test_levels_need_as_many_steps_between_them():
    with pytest.raises(UserError, match=r"3 multipliers need 2 entries each in space_down and time_down, not 1 and 2"):
        config(space_down=(True,))


def test_each_convolution_looks_back_only():
    """The kernels over time never reach ahead: the guarantee behind all of the above."""
    model = nnx.eval_shape(lambda: Autoencoder(config(), rngs=Rngs(0)))
    found = [node for _, node in nnx.iter_graph(model) if isinstance(node, conv.CausalConv)]
    assert len(found) > 20
    assert {node.kernel.shape[0] for node in found} == {1, 3}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latent_frames", [1, *(pytest.param(frames, marks=pytest.mark.slow) for frames in (2, 3))])
def test_chunks_give_the_numbers_of_the_whole(kind, latent_frames):
    structure, params = random_model(kind)
    stride = KINDS[kind].time_stride
    model = merge_model(structure, params)
    clip, latent = draw(1, 13, 8, 12, 3), draw(1, 1 + 12 // stride, 2, 3, 3)

    def chunked(x, step, apply):
        @jax.jit
        def advance(x, kept):
            past = Past(kept)
            return apply(x, past), past.after

        kept, results = None, []
        for start in (0, *range(1, x.shape[1], step)):
            result, kept = advance(x[:, start : start + step] if start else x[:, :1], kept)
            results.append(result)
        return np.concatenate(results, axis=1)

    whole = programs(kind)[0](clip)
    got = chunked(clip, latent_frames * stride, lambda x, p: model.encoder.finish(model.encoder.down(x, p), p))
    np.testing.assert_allclose(got, whole, atol=1e-5)
    got = chunked(latent, latent_frames, lambda x, p: model.decoder.up(model.decoder.begin(x, p), p))
    np.testing.assert_allclose(got, programs(kind)[1](latent), atol=1e-5)


def test_what_is_computed_again_is_the_same():
    """Rematerialisation changes what is kept, neither values nor gradients."""
    kept, computed = gradient(), gradient(remat=True)
    for name, value in kept.items():
        np.testing.assert_allclose(computed[name], value, rtol=1e-4, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(("bottleneck", "codes"), [("kl", 4), ("fsq", None), ("vq", 1)])
def test_a_bottleneck_needs_its_codes(bottleneck, codes):
    with pytest.raises(UserError, match=rf"codes {codes} with bottleneck '{bottleneck}'"):
        config(bottleneck=bottleneck, codes=codes)


@pytest.mark.parametrize("axes", [{"sequence": 2, "tensor": 2}, {"data": 2, "sequence": 4}])
def test_frames_spread_over_a_mesh_give_the_same_numbers(axes):
    mesh = make_mesh(MeshConfig(**{"data": None, "fsdp": 1, "sequence": 1, "tensor": 1} | axes))
    structure, params = random_model("all")
    clip = draw(2, 5, 16, 16, 3)
    with jax.set_mesh(mesh):
        program = jax.jit(
            lambda params, clip: merge_model(structure, params).decode(merge_model(structure, params).encode(clip))
        )
        compiled = program.lower(params, clip).compile()
        spread = compiled(params, clip)
    encode, decode = programs("all")
    np.testing.assert_allclose(spread, decode(encode(clip)[..., :3]), atol=1e-4)
    assert "collective-permute" in compiled.as_text(), "neighbours exchange their borders"


def test_ends_of_one_block_see_one_block():
    with pytest.raises(UserError, match="autoencoder: patch_kernel 2: give 1 or 3"):
        config(patch_kernel=2)
    params = abstract_model(lambda key: Autoencoder(config(patch_kernel=1), rngs=Rngs(key)))[1]
    for name in ("encoder.conv_in.kernel", "decoder.head.conv.kernel"):
        assert params[name].shape[:3] == (1, 1, 1)
    assert params["encoder.head.conv.kernel"].shape[:3] == (3, 3, 3)
