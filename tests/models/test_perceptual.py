"""LPIPS against slow numpy for one position, and (marker parity) against torch written as the lpips package does it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sora_jax.core.errors import UserError
from sora_jax.models import perceptual

VGG16 = {0: 3, 2: 64, 5: 64, 7: 128, 10: 128, 12: 256, 14: 256, 17: 256, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
ALEXNET = {0: 3, 3: 64, 6: 192, 8: 384, 10: 256}
WIDTHS = {"vgg16": (64, 128, 256, 512, 512), "alexnet": (64, 192, 384, 256, 256)}
OUT = {
    "vgg16": (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
    "alexnet": (64, 192, 384, 256, 256),
}


def random_weights(network):
    """Weights under the foreign names, each kernel keeping the scale of what goes through."""
    rng, weights = np.random.default_rng(0), {}
    for number, ((place, width_in), width) in enumerate(
        zip((VGG16 if network == "vgg16" else ALEXNET).items(), OUT[network], strict=True)
    ):
        side = {0: 11, 1: 5}.get(number, 3) if network == "alexnet" else 3
        kernel = rng.normal(size=(width, width_in, side, side)) * (2 / (width_in * side * side)) ** 0.5
        weights[f"features.{place}.weight"] = kernel.astype(np.float32)
        weights[f"features.{place}.bias"] = rng.normal(scale=0.1, size=width).astype(np.float32)
    for number, width in enumerate(WIDTHS[network]):
        weights[f"lin{number}.model.1.weight"] = rng.uniform(size=(1, width, 1, 1)).astype(np.float32)
    return weights


def clips(*shape, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, size=(*shape, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def weights():
    return random_weights("alexnet")


def distance(weights, first, second):
    return np.asarray(jax.jit(perceptual.lpips)(weights, first, second))


def test_equal_clips_have_no_distance_and_others_a_symmetric_one(weights):
    first, second = clips(1, 2, 32, 32), clips(1, 2, 32, 32, seed=2)
    assert distance(weights, first, first).tolist() == [[0, 0]]
    there, back = distance(weights, first, second), distance(weights, second, first)
    assert there.shape == (1, 2)
    assert there.dtype == np.float32
    assert (there > 0.1).all()
    np.testing.assert_allclose(there, back, rtol=1e-6)


def test_frames_are_judged_each_by_itself_and_damage_is_seen(weights):
    truth = clips(2, 3, 32, 32)
    made = truth.copy()
    made[1, 2] += 0.02 * clips(32, 32, seed=3)
    slight = distance(weights, truth, made)
    made[1, 2] += 0.3 * clips(32, 32, seed=3)
    found = distance(weights, truth, made)
    assert np.argwhere(found > 0).tolist() == [[1, 2]]
    assert found[1, 2] > 2 * slight[1, 2] > 0


def test_a_layer_is_the_slow_one():
    """A VGG16 whose first layers pass the colours on: the distance of its first feature at every pixel, by hand."""
    weights = {name: np.zeros_like(value) for name, value in random_weights("vgg16").items()}
    for place in (0, 2):
        for colour in range(3):
            weights[f"features.{place}.weight"][colour, colour, 1, 1] = 1
    weights["lin0.model.1.weight"][0, :3, 0, 0] = (1, 2, 3)
    first, second = clips(1, 1, 16, 16), clips(1, 1, 16, 16, seed=2)
    total = 0.0
    for row, column in np.ndindex(16, 16):
        rays = []
        for clip in (first, second):
            scaled = (clip[0, 0, row, column] + (0.030, 0.088, 0.188)) / (0.458, 0.448, 0.450)
            seen = np.maximum(scaled, 0)
            rays.append(seen / (np.sqrt(np.sum(seen**2)) + 1e-10))
        total += np.sum((1, 2, 3) * (rays[0] - rays[1]) ** 2)
    assert distance(weights, first, second)[0, 0] == pytest.approx(total / 256, rel=1e-5)


def test_gradients_are_finite_where_nothing_is_felt_and_point_downhill(weights):
    truth = clips(1, 1, 32, 32)

    def loss(clip):
        return perceptual.lpips(weights, clip, truth).sum()

    dead = dict(weights, **{"features.0.bias": np.full(64, -100, np.float32)})
    felt = jax.jit(jax.grad(lambda clip: perceptual.lpips(dead, clip, truth).sum()))
    assert np.isfinite(felt(0 * truth)).all()
    made = truth + 0.1 * clips(1, 1, 32, 32, seed=3)
    value, slope = jax.jit(jax.value_and_grad(loss))(made)
    assert np.isfinite(slope).all()
    assert loss(made - 1e-3 * slope / np.abs(slope).max()) < value


def test_half_precision_is_near(weights):
    first, second = clips(1, 1, 32, 32), clips(1, 1, 32, 32, seed=2)
    half = perceptual.lpips(weights, jnp.asarray(first, jnp.bfloat16), jnp.asarray(second, jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, distance(weights, first, second), rtol=0.05)


@pytest.mark.parametrize(("network", "smallest"), [("vgg16", 16), ("alexnet", 31)])
def test_a_file_is_known_by_its_shapes_and_what_else_it_holds_is_left(tmp_path, network, smallest):
    expected = random_weights(network)
    path = tmp_path / "lpips.safetensors"
    save_file({**expected, "classifier.6.bias": np.zeros(1000, np.float32)}, path)
    loaded = perceptual.load_perceptual(path)
    assert loaded.keys() == expected.keys()
    assert all(np.array_equal(loaded[name], value) for name, value in expected.items())
    assert perceptual.smallest_side(loaded) == smallest
    shape = jax.eval_shape(perceptual.lpips, loaded, *[np.zeros((1, 2, smallest, smallest, 3), np.float32)] * 2)
    assert shape.shape == (1, 2)


def test_files_that_cannot_be_used_end_in_a_sentence(tmp_path, weights):
    path = tmp_path / "lpips.safetensors"
    with pytest.raises(UserError, match=r"lpips.safetensors does not exist; make it as docs/evaluation.md says"):
        perceptual.load_perceptual(path)
    save_file({"conv.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match=r"neither VGG16 nor AlexNet \(features.0.weight is missing\)"):
        perceptual.load_perceptual(path)
    save_file({**weights, "features.0.weight": np.zeros((64, 3, 7, 7), np.float32)}, path)
    with pytest.raises(UserError, match=r"features.0.weight has shape \(64, 3, 7, 7\)"):
        perceptual.load_perceptual(path)
    some = {name: value for name, value in weights.items() if not name.startswith("lin")}
    save_file(some, path)
    with pytest.raises(UserError, match=r"lin0.model.1.weight is missing, .* and 2 more; make it"):
        perceptual.load_perceptual(path)
    save_file({**weights, "features.3.bias": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match=r"features.3.bias is \(3,\) instead of \(192,\)"):
        perceptual.load_perceptual(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        perceptual.load_perceptual(path)


def torch_lpips(network, weights, first_NCHW, second_NCHW):
    """The sum over five layers of weighted squared differences of unit features, averaged over space."""
    torch = pytest.importorskip("torch")
    plan = {
        "vgg16": ("cc", "pcc", "pccc", "pccc", "pccc"),
        "alexnet": ("c", "pc", "pc", "c", "c"),
    }[network]

    def features(x):
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = (x - shift[None, :, None, None]) / scale[None, :, None, None]
        places, found = iter(VGG16 if network == "vgg16" else ALEXNET), []
        for stage in plan:
            for step in stage:
                if step == "p":
                    x = torch.nn.functional.max_pool2d(x, 2 if network == "vgg16" else 3, 2)
                    continue
                place = next(places)
                kernel, bias = (torch.from_numpy(weights[f"features.{place}.{part}"]) for part in ("weight", "bias"))
                stride, padding = (4, 2) if kernel.shape[-1] == 11 else (1, kernel.shape[-1] // 2)
                x = torch.relu(torch.nn.functional.conv2d(x, kernel, bias, stride=stride, padding=padding))
            found.append(x)
        return found

    def normalised(x):
        return x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + 1e-10)

    total = 0
    for number, (a, b) in enumerate(zip(features(first_NCHW), features(second_NCHW), strict=True)):
        linear = torch.from_numpy(weights[f"lin{number}.model.1.weight"])
        seen = torch.nn.functional.conv2d((normalised(a) - normalised(b)) ** 2, linear)
        total = total + seen.mean([2, 3])
    return total


@pytest.mark.parity
@pytest.mark.parametrize("network", ["vgg16", "alexnet"])
@pytest.mark.parametrize("size", [(33, 48), (64, 41)])
def test_distances_agree_with_torch(network, size):
    torch = pytest.importorskip("torch")
    weights = random_weights(network)
    first, second = clips(2, 2, *size), clips(2, 2, *size, seed=2)
    both = [torch.from_numpy(clip.reshape(4, *size, 3).transpose(0, 3, 1, 2).copy()) for clip in (first, second)]
    expected = torch_lpips(network, weights, *both).numpy().reshape(2, 2)
    assert (expected > 0.1).all()
    np.testing.assert_allclose(distance(weights, first, second), expected, rtol=0, atol=1e-5)
