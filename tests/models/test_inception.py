"""Inception of FID: its pooling against numpy, its shapes, and (marker parity) the whole of it against torch."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from sora_jax.core.errors import UserError
from sora_jax.models import inception
from tests.small import conv_weights


def test_frames_are_scaled_without_rounding_and_stay_in_range():
    edge = np.zeros((1, 4, 8, 3), np.uint8)
    edge[:, :, 4:] = 255
    fitted = inception.fit_inception(edge)
    assert fitted.shape == (1, 299, 299, 3)
    assert (float(fitted.min()), float(fitted.max())) == (-1, 127 / 128)  # a bicubic filter overshoots: it is clipped
    assert len(np.unique(fitted)) > 40


def test_what_lies_outside_is_no_part_of_a_mean():
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)
    found = inception.average_pool(x)[0]
    for row, column in np.ndindex(3, 4):
        window = x[0, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        np.testing.assert_allclose(found[row, column], window.mean(axis=(0, 1)), rtol=1e-5)


def test_the_shapes_are_those_of_the_public_file():
    shapes = inception.shapes()
    assert len(shapes) == 94 * 5 + 2
    learned = sum(int(np.prod(shape)) for name, shape in shapes.items() if "running" not in name)
    assert learned == 21_785_568 + 1008 * 2049  # torchvision's, less its classes, with the others
    assert shapes["Mixed_6b.branch7x7dbl_2.conv.weight"] == (128, 128, 7, 1)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert shapes["Mixed_7a.branch7x7x3_4.conv.weight"] == (192, 192, 3, 3)


def test_torchvisions_network_is_another(tmp_path):
    shapes = {**inception.shapes(), "fc.weight": (1000, 2048), "fc.bias": (1000,)}
    path = tmp_path / "inception.safetensors"
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, path)
    with pytest.raises(UserError, match=r"fc.weight is \(1000, 2048\) instead of \(1008, 2048\)"):
        inception.load_inception(path)


def test_frames_of_any_size_become_2048_numbers():
    weights = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in inception.shapes().items()}
    frame = jax.eval_shape(inception.fit_inception, jax.ShapeDtypeStruct((2, 24, 40, 3), np.uint8))
    assert jax.eval_shape(inception.inception_features, weights, frame).shape == (2, 2048)


def torch_inception(weights, x, torch):
    """The network as the public torch code orders it, branch by branch."""
    functional = torch.nn.functional

    def unit(name, x, **form):
        x = functional.conv2d(x, torch.from_numpy(weights[f"{name}.conv.weight"]), **form)
        weight, bias, mean, variance = (
            torch.from_numpy(weights[f"{name}.bn.{part}"]) for part in ("weight", "bias", "running_mean", "running_var")
        )
        return torch.relu(functional.batch_norm(x, mean, variance, weight, bias, eps=0.001))

    def average(x):
        return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def small(name, x):
        wide = unit(f"{name}.branch5x5_2", unit(f"{name}.branch5x5_1", x), padding=2)
        double = unit(f"{name}.branch3x3dbl_2", unit(f"{name}.branch3x3dbl_1", x), padding=1)
        double = unit(f"{name}.branch3x3dbl_3", double, padding=1)
        return torch.cat([unit(f"{name}.branch1x1", x), wide, double, unit(f"{name}.branch_pool", average(x))], 1)

    def middle(name, x):
        seven, double = unit(f"{name}.branch7x7_1", x), unit(f"{name}.branch7x7dbl_1", x)
        seven = unit(f"{name}.branch7x7_3", unit(f"{name}.branch7x7_2", seven, padding=(0, 3)), padding=(3, 0))
        for number, padding in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
            double = unit(f"{name}.branch7x7dbl_{number}", double, padding=padding)
        return torch.cat([unit(f"{name}.branch1x1", x), seven, double, unit(f"{name}.branch_pool", average(x))], 1)

    def large(name, x, pool):
        def both(part, x):
            return [unit(f"{part}a", x, padding=(0, 1)), unit(f"{part}b", x, padding=(1, 0))]

        three = both(f"{name}.branch3x3_2", unit(f"{name}.branch3x3_1", x))
        double = unit(f"{name}.branch3x3dbl_2", unit(f"{name}.branch3x3dbl_1", x), padding=1)
        double = both(f"{name}.branch3x3dbl_3", double)
        return torch.cat([unit(f"{name}.branch1x1", x), *three, *double, unit(f"{name}.branch_pool", pool(x))], 1)

    x = unit("Conv2d_2a_3x3", unit("Conv2d_1a_3x3", x, stride=2))
    x = functional.max_pool2d(unit("Conv2d_2b_3x3", x, padding=1), 3, stride=2)
    x = functional.max_pool2d(unit("Conv2d_4a_3x3", unit("Conv2d_3b_1x1", x)), 3, stride=2)
    for letter in "bcd":
        x = small(f"Mixed_5{letter}", x)
    double = unit("Mixed_6a.branch3x3dbl_2", unit("Mixed_6a.branch3x3dbl_1", x), padding=1)
    double = unit("Mixed_6a.branch3x3dbl_3", double, stride=2)
    x = torch.cat([unit("Mixed_6a.branch3x3", x, stride=2), double, functional.max_pool2d(x, 3, stride=2)], 1)
    for letter in "bcde":
        x = middle(f"Mixed_6{letter}", x)
    three = unit("Mixed_7a.branch3x3_2", unit("Mixed_7a.branch3x3_1", x), stride=2)
    seven = unit("Mixed_7a.branch7x7x3_2", unit("Mixed_7a.branch7x7x3_1", x), padding=(0, 3))
    seven = unit("Mixed_7a.branch7x7x3_4", unit("Mixed_7a.branch7x7x3_3", seven, padding=(3, 0)), stride=2)
    x = torch.cat([three, seven, functional.max_pool2d(x, 3, stride=2)], 1)
    x = large("Mixed_7b", x, average)
    x = large("Mixed_7c", x, lambda x: functional.max_pool2d(x, 3, stride=1, padding=1))
    return x.mean(dim=(2, 3))


@pytest.mark.parity
def test_the_features_agree_with_torch():
    torch = pytest.importorskip("torch")
    weights = conv_weights(inception.shapes())
    frame = np.random.default_rng(1).uniform(-1, 1, size=(1, 299, 299, 3)).astype(np.float32)
    with torch.no_grad():
        expected = torch_inception(weights, torch.from_numpy(frame.transpose(0, 3, 1, 2).copy()), torch).numpy()
    found = jax.jit(inception.inception_features)(weights, frame)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
