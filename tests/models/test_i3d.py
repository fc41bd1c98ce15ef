"""I3D: its windows against slow numpy, and (marker parity) the whole of it against torch."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from sora_jax.core.errors import UserError
from sora_jax.models import i3d
from tests.small import conv_weights


def unit_weights(name, width_in, width, kernel):
    norm = {f"{name}.bn.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.conv3d.weight": (width, width_in, *kernel), **norm}


def slow_unit(weights, name, x_THWC, stride):
    """Convolution, normalisation and rectification at every position, the padding of TensorFlow written out."""
    kernel = weights[f"{name}.conv3d.weight"]
    pads = []
    for size, side in zip(x_THWC.shape[:3], kernel.shape[2:], strict=True):
        pad = max((-(-size // stride) - 1) * stride + side - size, 0)
        pads.append((pad // 2, pad - pad // 2))
    padded = np.pad(x_THWC.astype(np.float64), (*pads, (0, 0)))
    out = np.zeros((*(-(-size // stride) for size in x_THWC.shape[:3]), len(kernel)))
    for t, h, w in np.ndindex(*out.shape[:3]):
        places = zip((t, h, w), kernel.shape[2:], strict=True)
        window = padded[tuple(slice(stride * place, stride * place + size) for place, size in places)]
        out[t, h, w] = np.einsum("thwi,oithw->o", window, kernel)
    weight, bias, mean, variance = (
        weights[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return np.maximum((out - mean) / np.sqrt(variance + 1e-3) * weight + bias, 0)


@pytest.mark.parametrize(("size", "stride", "side"), [((4, 5, 6), 2, 3), ((5, 4, 7), 2, 7), ((3, 4, 3), 1, 3)])
def test_a_unit_is_the_slow_one(size, stride, side):
    weights = conv_weights(unit_weights("a", 3, 4, (side,) * 3))
    x = np.random.default_rng(1).normal(size=(*size, 3)).astype(np.float32)
    found = i3d.unit(weights, "a", x[None], stride=stride)[0]
    np.testing.assert_allclose(found, slow_unit(weights, "a", x, stride), atol=1e-5)


def test_a_file_with_more_in_it_is_read_and_others_end_in_a_sentence(tmp_path):
    path = tmp_path / "i3d.safetensors"
    with pytest.raises(UserError, match=r"does not exist; make it as docs/evaluation.md says"):
        i3d.load_i3d(path)
    weights = {name: np.zeros(shape, np.float16) for name, shape in i3d.shapes().items()}
    save_file({**weights, "Mixed_3b.b0.bn.num_batches_tracked": np.zeros((), np.int64)}, path)
    loaded = i3d.load_i3d(path)
    assert {name: value.shape for name, value in loaded.items()} == i3d.shapes()
    assert {value.dtype for value in loaded.values()} == {np.dtype(np.float32)}
    save_file({**weights, "logits.conv3d.bias": np.zeros(600, np.float16)}, path)
    with pytest.raises(UserError, match=r"logits.conv3d.bias is \(600,\) instead of \(400,\)"):
        i3d.load_i3d(path)


def test_the_shapes_are_those_of_the_public_file():
    shapes = i3d.shapes()
    assert len(shapes) == 57 * 5 + 2
    assert sum(int(np.prod(shape)) for name, shape in shapes.items() if "running" not in name) == 12_697_264
    assert shapes["Mixed_4f.b2b.conv3d.weight"] == (128, 32, 3, 3, 3)
    assert shapes["Mixed_5c.b3b.conv3d.weight"] == (128, 832, 1, 1, 1)


@pytest.mark.parametrize(("frames", "height", "width"), [(9, 16, 40), (17, 64, 32)])
def test_clips_of_any_size_become_400_numbers(frames, height, width):
    weights = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in i3d.shapes().items()}
    clip = jax.ShapeDtypeStruct((2, frames, height, width, 3), np.float32)
    fitted = jax.eval_shape(i3d.fit_i3d, clip)
    assert jax.eval_shape(i3d.i3d_features, weights, fitted).shape == (2, 400)


def torch_i3d(weights, x, *, module=None):
    """The network, or one inception module of it, as the public torch code pads and orders it."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def padded(x, window, stride):
        pads = []
        for size, side, step in zip(x.shape[2:], window, stride, strict=True):
            pad = max(side - (size % step or step), 0)
            pads = [pad // 2, pad - pad // 2, *pads]
        return functional.pad(x, pads)

    def pool(x, window, stride):
        return functional.max_pool3d(padded(x, window, stride), window, stride)

    def unit(name, x, stride=(1, 1, 1)):
        kernel = torch.from_numpy(weights[f"{name}.conv3d.weight"])
        x = functional.conv3d(padded(x, kernel.shape[2:], stride), kernel, stride=stride)
        weight, bias, mean, variance = (
            torch.from_numpy(weights[f"{name}.bn.{part}"]) for part in ("weight", "bias", "running_mean", "running_var")
        )
        return torch.relu(functional.batch_norm(x, mean, variance, weight, bias, eps=0.001))

    def inception(name, x):
        first = unit(f"{name}.b0", x)
        others = [unit(f"{name}.b{n}b", unit(f"{name}.b{n}a", x)) for n in (1, 2)]
        last = unit(f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([first, *others, last], dim=1)

    if module:
        return inception(module, x)
    batch, _, frames = x.shape[:3]
    images = x.transpose(1, 2).flatten(0, 1)
    images = functional.interpolate(images, size=(224, 224), mode="bilinear", align_corners=False)
    x = images.reshape(batch, frames, 3, 224, 224).transpose(1, 2)
    x = pool(unit("Conv3d_1a_7x7", x, (2, 2, 2)), (1, 3, 3), (1, 2, 2))
    x = pool(unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x)), (1, 3, 3), (1, 2, 2))
    x = pool(inception("Mixed_3c", inception("Mixed_3b", x)), (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
        x = inception(f"Mixed_4{letter}", x)
    x = pool(x, (2, 2, 2), (2, 2, 2))
    x = functional.avg_pool3d(inception("Mixed_5c", inception("Mixed_5b", x)), (2, 7, 7), stride=(1, 1, 1))
    kernel, bias = (torch.from_numpy(weights[f"logits.conv3d.{part}"]) for part in ("weight", "bias"))
    return functional.conv3d(x, kernel, bias)[:, :, :, 0, 0].mean(dim=2)


def as_torch(clip_BTHWC):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(clip_BTHWC.transpose(0, 4, 1, 2, 3).copy())


@pytest.mark.parity
def test_an_inception_module_agrees_with_torch():
    weights = conv_weights({name: shape for name, shape in i3d.shapes().items() if name.startswith("Mixed_3b")})
    x = np.random.default_rng(1).uniform(size=(1, 3, 5, 6, 192)).astype(np.float32)
    expected = torch_i3d(weights, as_torch(x), module="Mixed_3b").numpy().transpose(0, 2, 3, 4, 1)
    assert expected.std() > 0.1
    np.testing.assert_allclose(i3d.mixed(weights, "Mixed_3b", x), expected, rtol=0, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize(("frames", "height", "width"), [(9, 40, 64), (17, 300, 20)])
def test_the_features_agree_with_torch(frames, height, width):
    weights = conv_weights(i3d.shapes())
    clip = np.random.default_rng(1).uniform(-1, 1, size=(1, frames, height, width, 3)).astype(np.float32)
    expected = torch_i3d(weights, as_torch(clip)).numpy()
    found = jax.jit(i3d.i3d_features)(weights, i3d.fit_i3d(clip))
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
