"""Wan's autoencoder weights: names, shapes and values there and back; with torch (marker parity), the same numbers."""

import dataclasses
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sora_jax.core.errors import StorageError, UserError
from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.interop import wan_autoencoder
from sora_jax.models.interop.wan_autoencoder import (
    LAYOUTS,
    config_of,
    latent_statistics,
    load_wan_autoencoder,
    save_wan_autoencoder,
)
from sora_jax.nn.conv import Past
from tests import small
from tests.small import random_params

PLAIN = dataclasses.replace(
    small.AUTOENCODER,
    patch=1,
    width=8,
    multipliers=(1, 2, 2, 2),
    space_down=(True, True, True),
    time_down=(False, True, True),
    decoder_width=8,
    decoder_blocks=2,
    attention=True,
    shortcuts=False,
    patch_kernel=3,
    linear_heads=False,
)
RESIDUAL = dataclasses.replace(PLAIN, patch=2, shortcuts=True, decoder_width=12)
# As many blocks as the published weights have, and levels that differ in width.
PLAIN_DEEPER = dataclasses.replace(PLAIN, multipliers=(1, 2, 4, 4), blocks=2, decoder_blocks=3)
CONFIGS = {
    "plain": PLAIN,
    "residual": RESIDUAL,
    "plain, deeper": PLAIN_DEEPER,
    "residual, deeper": dataclasses.replace(PLAIN_DEEPER, patch=2, shortcuts=True, decoder_width=16),
    "slow, three levels": dataclasses.replace(
        PLAIN, multipliers=(2, 3, 5), space_down=(True, True), time_down=(True, False), channels=3
    ),
}
MEAN_C, SCALE_C = np.array([0.5, -1.0, 0.0, 2.0]), np.array([1.0, 2.0, 0.5, 3.0])


def conv(name, out_dim, in_dim, *sides):
    return {f"{name}.weight": (out_dim, in_dim, *sides), f"{name}.bias": (out_dim,)}


def middle(name, dim, layout):
    """Returns the middle of one half, 16 wide in all tests with written-out shapes."""
    diffusers = layout == "diffusers"
    first, second = (f"{name}.mid_block.resnets.{i}" if diffusers else f"{name}.middle.{2 * i}" for i in (0, 1))
    mixer = f"{name}.mid_block.attentions.0" if diffusers else f"{name}.middle.1"
    return {
        **block(first, dim, dim, layout),
        f"{mixer}.norm.gamma": (dim, 1, 1),
        **conv(f"{mixer}.to_qkv", 3 * dim, dim, 1, 1),
        **conv(f"{mixer}.proj", dim, dim, 1, 1),
        **block(second, dim, dim, layout),
    }


def block(name, in_dim, out_dim, layout):
    norm1, conv1, norm2, conv2, shortcut = {
        "diffusers": ("norm1", "conv1", "norm2", "conv2", "conv_shortcut"),
        "original": ("residual.0", "residual.2", "residual.3", "residual.6", "shortcut"),
    }[layout]
    table = {
        f"{name}.{norm1}.gamma": (in_dim, 1, 1, 1),
        **conv(f"{name}.{conv1}", out_dim, in_dim, 3, 3, 3),
        f"{name}.{norm2}.gamma": (out_dim, 1, 1, 1),
        **conv(f"{name}.{conv2}", out_dim, out_dim, 3, 3, 3),
    }
    return table | (conv(f"{name}.{shortcut}", out_dim, in_dim, 1, 1, 1) if in_dim != out_dim else {})


def public_shapes(variant, layout):
    """Returns the names and shapes of PLAIN or RESIDUAL in the public code, written out from its layers."""
    plain, diffusers = variant == "plain", layout == "diffusers"
    wide = 8 if plain else 12  # of the decoder's last level; the others are twice as wide
    pixels = 3 if plain else 12
    ends = ("conv_in", "norm_out", "conv_out") if diffusers else ("conv1", "head.0", "head.2")
    quant, post_quant = ("quant_conv", "post_quant_conv") if diffusers else ("conv1", "conv2")
    table = {
        **conv(f"encoder.{ends[0]}", 8, pixels, 3, 3, 3),
        **middle("encoder", 16, layout),
        f"encoder.{ends[1]}.gamma": (16, 1, 1, 1),
        **conv(f"encoder.{ends[2]}", 8, 16, 3, 3, 3),
        **conv(quant, 8, 8, 1, 1, 1),
        **conv(post_quant, 4, 4, 1, 1, 1),
        **conv(f"decoder.{ends[0]}", 2 * wide, 4, 3, 3, 3),
        **middle("decoder", 2 * wide, layout),
        f"decoder.{ends[1]}.gamma": (wide, 1, 1, 1),
        **conv(f"decoder.{ends[2]}", pixels, wide, 3, 3, 3),
    }
    downs, ups = places(variant, layout)
    down_dims, timed = [(8, 8), (8, 16), (16, 16), (16, 16)], [False, True, True]
    for level, ((only, step), (in_dim, out_dim)) in enumerate(zip(downs, down_dims, strict=True)):
        table |= block(f"encoder.{only}", in_dim, out_dim, layout)
        if level < 3:
            table |= conv(f"encoder.{step}.resample.1", out_dim, out_dim, 3, 3)
            table |= conv(f"encoder.{step}.time_conv", out_dim, out_dim, 3, 1, 1) if timed[level] else {}
    up_dims = [(16, 16), (8, 16), (8, 16), (8, 8)] if plain else [(24, 24), (24, 24), (24, 24), (24, 12)]
    for level, ((first, second, step), (in_dim, out_dim)) in enumerate(zip(ups, up_dims, strict=True)):
        table |= block(f"decoder.{first}", in_dim, out_dim, layout)
        table |= block(f"decoder.{second}", out_dim, out_dim, layout)
        if level < 3:
            table |= conv(f"decoder.{step}.resample.1", out_dim // 2 if plain else out_dim, out_dim, 3, 3)
            table |= conv(f"decoder.{step}.time_conv", 2 * out_dim, out_dim, 3, 1, 1) if timed[2 - level] else {}
    return table


def places(variant, layout):
    """Returns of each level of encoder and decoder where its residual blocks lie, and last its step."""
    if (variant, layout) == ("plain", "diffusers"):
        return (
            [[f"down_blocks.{2 * i}", f"down_blocks.{2 * i + 1}"] for i in range(4)],
            [[f"up_blocks.{i}.{part}" for part in ("resnets.0", "resnets.1", "upsamplers.0")] for i in range(4)],
        )
    if (variant, layout) == ("plain", "original"):
        return (
            [[f"downsamples.{2 * i + j}" for j in range(2)] for i in range(4)],
            [[f"upsamples.{3 * i + j}" for j in range(3)] for i in range(4)],
        )
    if (variant, layout) == ("residual", "diffusers"):
        return (
            [[f"down_blocks.{i}.resnets.0", f"down_blocks.{i}.downsampler"] for i in range(4)],
            [[f"up_blocks.{i}.{part}" for part in ("resnets.0", "resnets.1", "upsampler")] for i in range(4)],
        )
    return (
        [[f"downsamples.{i}.downsamples.{j}" for j in range(2)] for i in range(4)],
        [[f"upsamples.{i}.upsamples.{j}" for j in range(3)] for i in range(4)],
    )


def random_weights(variant="plain", layout="diffusers"):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in public_shapes(variant, layout).items()}


def params_of(config):
    return random_params(abstract_model(lambda key: Autoencoder(config, rngs=Rngs(key)))[1])


def saved(folder, weights, **config):
    folder.mkdir(exist_ok=True)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(weights, file)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return file


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("variant", "config"), [("plain", PLAIN), ("residual", RESIDUAL)])
def test_public_weights_are_read_and_written_back_exactly(tmp_path, variant, config, layout):
    weights = random_weights(variant, layout)
    path = saved(tmp_path / "theirs", weights)
    assert config_of(path) == config_of(path.parent) == config
    params = load_wan_autoencoder(path, config)
    expected = abstract_model(lambda key: Autoencoder(config, rngs=Rngs(key)))[1]
    assert {n: v.shape for n, v in params.items()} == {n: v.shape for n, v in expected.items()}
    assert {v.dtype for v in params.values()} == {np.dtype(np.float32)}
    back = load_file(save_wan_autoencoder(tmp_path / "back", config, params, MEAN_C, SCALE_C, layout))
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_is_written_is_read_with_its_shape_and_statistics(tmp_path, config, layout):
    params = params_of(config)
    mean_C, scale_C = MEAN_C[: config.channels], SCALE_C[: config.channels]
    file = save_wan_autoencoder(tmp_path / "new" / "deep", config, params, mean_C, scale_C, layout)
    assert config_of(file) == config
    loaded = load_wan_autoencoder(file, config)
    for name, value in params.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)
    found = latent_statistics(file, config.channels)
    assert found is not None
    np.testing.assert_array_equal(found, (mean_C, scale_C))


def test_a_kernel_is_that_convolution():
    rng = np.random.default_rng(1)
    theirs = rng.normal(size=(5, 4, 3, 2, 2)).astype(np.float32)
    window_THWC = rng.normal(size=(3, 2, 2, 4)).astype(np.float32)
    ours = wan_autoencoder._to_ours(theirs, (3, 2, 2, 4, 5))
    expected = np.einsum("octhw,thwc->o", theirs, window_THWC)
    np.testing.assert_allclose(np.einsum("thwco,thwc->o", ours, window_THWC), expected, rtol=1e-4)


def test_half_precision_becomes_float32(tmp_path):
    weights = {name: value.astype(jnp.bfloat16) for name, value in random_weights().items()}
    loaded = load_wan_autoencoder(saved(tmp_path / "half", weights), PLAIN)
    assert {value.dtype for value in loaded.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(loaded["decoder.head.norm.scale"], weights["decoder.norm_out.gamma"][:, 0, 0, 0])


def test_statistics_are_those_beside_the_weights(tmp_path):
    file = saved(tmp_path / "a", random_weights())
    assert latent_statistics(file, 4) is latent_statistics(file.parent, 4) is None
    saved(tmp_path / "a", random_weights(), _class_name="SomethingElse")
    assert latent_statistics(file, 4) is None
    saved(tmp_path / "a", random_weights(), latents_mean=MEAN_C.tolist(), latents_std=SCALE_C.tolist())
    for path in (file, file.parent):
        np.testing.assert_array_equal(latent_statistics(path, 4), (MEAN_C, SCALE_C))


@pytest.mark.parametrize(
    "config",
    [
        {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 5},
        {"latents_mean": [0.0] * 5, "latents_std": [1.0] * 5},
        {"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]},
        {"latents_mean": [float("nan")] * 4, "latents_std": [1.0] * 4},
    ],
)
def test_statistics_that_cannot_be_are_refused(tmp_path, config):
    file = saved(tmp_path / "a", random_weights(), **config)
    with pytest.raises(UserError, match=r"config\.json must have 4 latents_mean and as many latents_std above 0"):
        latent_statistics(file, 4)


@pytest.mark.parametrize("text", ["{", "[]", '{"latents_mean": ["x"], "latents_std": [1]}'])
def test_a_damaged_config_is_told(tmp_path, text):
    file = saved(tmp_path / "a", random_weights())
    (tmp_path / "a" / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        latent_statistics(file, 4)


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"blocks.0.w": np.zeros(3)}, "holds no Wan autoencoder, but blocks.0.w; give the weights of a Wan 2.1 or 2.2"),
        ({}, "holds no Wan autoencoder, but none"),
        ({"encoder.conv_in.weight": np.zeros((8, 3, 3, 3))}, "lacks encoder.norm_out.gamma, decoder.norm_out.gamma, "),
        (
            without(random_weights(), "decoder.up_blocks.3.resnets.1.conv2.bias"),
            "missing decoder.up_blocks.3.resnets.1.conv2.bias; not known none",
        ),
        (
            without(random_weights(), "encoder.mid_block.attentions.0.proj.weight"),
            "missing encoder.mid_block.attentions.0.proj.weight",
        ),
        ({**random_weights(), "discriminator.weight": np.zeros(3)}, "missing none; not known discriminator.weight"),
        (
            {**random_weights(), "encoder.conv_out.weight": np.zeros((8, 16, 1, 3, 3))},
            "no autoencoder of one shape: encoder.conv_out.weight is (8, 16, 1, 3, 3) instead of (8, 16, 3, 3, 3)",
        ),
        ({**random_weights(), "encoder.conv_in.weight": np.zeros((8, 4, 3, 3, 3))}, "instead of (8, 3, 3, 3, 3)"),
        ({**random_weights(), "encoder.conv_in.weight": np.zeros((8, 1, 3, 3, 3))}, "instead of (8, 3, 3, 3, 3)"),
        (
            {**random_weights(), "encoder.conv_in.weight": np.zeros((99, 3, 3, 3, 3))},
            "missing decoder.up_blocks.3.resnets.0.conv_shortcut",
        ),
    ],
)
def test_weights_of_something_else_are_refused(tmp_path, weights, said):
    with pytest.raises(UserError, match=re.escape(said)):
        config_of(saved(tmp_path / "a", weights))


@pytest.mark.parametrize("name", ["Wan2.1_VAE.pth", "a.pt", "a.ckpt", "a.bin"])
def test_pickles_are_refused_with_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(UserError, match=f"{name} is a pickle, which can run any code .* safetensors.torch.save_file"):
        config_of(tmp_path / name)


def test_files_that_cannot_be_used_end_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"does not exist; give one \.safetensors file, or a model's folder"):
        config_of(tmp_path)
    file = saved(tmp_path / "a", random_weights())
    with pytest.raises(UserError, match=r"another shape than the config: width 8, not 16; channels 4, not 5; take"):
        load_wan_autoencoder(file, dataclasses.replace(PLAIN, width=16, channels=5))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        config_of(file)


@pytest.mark.parametrize(
    ("config", "layout", "said"),
    [
        ({"attention": False}, "diffusers", "attention is False, and the middle of Wan attends"),
        ({"bottleneck": "fsq", "codes": 5}, "diffusers", "bottleneck is 'fsq', and Wan has only 'kl'"),
        ({"bottleneck": "vq", "codes": 5}, "original", "bottleneck is 'vq'"),
        ({"patch_kernel": 1}, "original", "patch_kernel is 1, and Wan's is 3"),
        ({"linear_heads": True}, "original", "linear_heads is True, and Wan's heads see normalised features alone"),
        ({"space_down": (True, False, True)}, "diffusers", "space_down is (True, False, True), and Wan halves space"),
        ({"time_down": (True, True, True)}, "diffusers", "the temporal stride is 8, and Wan takes 4 frames at once"),
        ({"decoder_blocks": 1}, "diffusers", "decoder_blocks is 1, and Wan has blocks + 1 = 2"),
        (
            {"shortcuts": True, "multipliers": (1, 2, 2, 3)},
            "diffusers",
            "level 3 has no shortcut, as 16 x 1 channels give no whole 24",
        ),
        ({"patch": 2}, "original", "patch is 2, and with shortcuts False Wan has 1"),
        ({"shortcuts": True}, "original", "patch is 1, and with shortcuts True Wan has 2"),
        (
            {"multipliers": (1,) * 5, "space_down": (True,) * 4, "time_down": (True, True, False, False)},
            "original",
            "there are 5 levels, and Wan 2.1 has 4 at most",
        ),
        ({"attention": False, "decoder_blocks": 1}, "original", "attends; decoder_blocks is 1"),
    ],
)
def test_what_wan_cannot_express_is_named(tmp_path, config, layout, said):
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        save_wan_autoencoder(tmp_path / "a", dataclasses.replace(PLAIN, **config), {}, MEAN_C, SCALE_C, layout)
    assert str(caught.value).startswith(f"Wan's {layout} layout cannot express this autoencoder: ")
    assert not (tmp_path / "a").exists()


def test_a_model_that_is_there_is_not_overwritten(tmp_path):
    with pytest.raises(UserError, match=r"vae\.safetensors: an autoencoder is a folder of weights and a config\.json"):
        save_wan_autoencoder(tmp_path / "vae.safetensors", PLAIN, {}, MEAN_C, SCALE_C)
    save_wan_autoencoder(tmp_path / "a", PLAIN, params_of(PLAIN), MEAN_C, SCALE_C)
    for layout in LAYOUTS:
        with pytest.raises(UserError, match="holds a model already: give an empty folder, or a new one"):
            save_wan_autoencoder(tmp_path / "a", PLAIN, {}, MEAN_C, SCALE_C, layout)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        save_wan_autoencoder(tmp_path / "file" / "a", PLAIN, params_of(PLAIN), MEAN_C, SCALE_C)


def parts(config):
    """Returns (encode, decode) of clips and raw latents in chunks of some latent frames; None: whole."""
    structure, _, _ = abstract_model(lambda key: Autoencoder(config, rngs=Rngs(key)))

    def encode(model, clip, past):
        return model.bottleneck.mode(model.encoder.finish(model.encoder.down(clip, past), past))

    def decode(model, latent, past):
        return model.decoder.up(model.decoder.begin(latent, past), past)

    def program(apply, frames_of_one):
        @jax.jit
        def whole(params, x):
            return apply(merge_model(structure, params), x, Past(is_whole=True))

        @jax.jit
        def chunk(params, kept, x):
            past = Past(kept)
            return apply(merge_model(structure, params), x, past), past.after

        def run(params, x_BTHWC, *, step):
            if step is None:
                return np.asarray(whole(params, x_BTHWC))
            kept, found = None, []
            borders = [0, *range(1, x_BTHWC.shape[1], step * frames_of_one), x_BTHWC.shape[1]]
            for start, end in itertools.pairwise(borders):
                if end > start:
                    result, kept = chunk(params, kept, x_BTHWC[:, start:end])
                    found.append(np.asarray(result))
            return np.concatenate(found, axis=1)

        return run

    return program(encode, config.time_stride), program(decode, 1)


class Pair:
    """A random torch model in which no parameter is special, and ours with its weights."""

    def __init__(self, config, folder):
        self.torch = pytest.importorskip("torch")
        diffusers = pytest.importorskip("diffusers")
        self.config = config
        foreign = {**wan_autoencoder._foreign_config(config), "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
        self.torch.manual_seed(0)
        model = diffusers.AutoencoderKLWan(**{k: v for k, v in foreign.items() if not k.startswith("_")})
        with self.torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = 0.3 if name.endswith(("gamma", "bias")) else 0.5 * parameter[0].numel() ** -0.5
                parameter.add_(scale * self.torch.randn_like(parameter))
        self.model = model.eval()
        self.model.save_pretrained(folder)
        assert config_of(folder) == config
        self.params = load_wan_autoencoder(folder, config)
        self.encode, self.decode = parts(config)

    def their_latent(self, clip_BTHWC, model=None):
        return self._run(lambda clip: (model or self.model).encode(clip).latent_dist.mode(), clip_BTHWC)

    def their_clip(self, latent_BTHWC, model=None):
        return self._run(lambda latent: (model or self.model).decode(latent).sample, latent_BTHWC)

    def _run(self, apply, x_BTHWC):
        with self.torch.no_grad():
            return apply(self.torch.from_numpy(x_BTHWC.transpose(0, 4, 1, 2, 3))).numpy().transpose(0, 2, 3, 4, 1)


@pytest.fixture(scope="module", params=["plain", "residual", "residual, deeper"])
def pair(request, tmp_path_factory):
    return Pair(CONFIGS[request.param], tmp_path_factory.mktemp("theirs"))


def assert_same(found, expected, what):
    print(f"{what}: largest difference {np.abs(found - expected).max():.2e}, standard deviation {expected.std():.2f}")
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize(("variant", "config"), [("plain", PLAIN), ("residual", RESIDUAL)])
def test_the_template_is_the_public_model(tmp_path, variant, config):
    found = Pair(config, tmp_path).model.state_dict()
    assert {name: tuple(value.shape) for name, value in found.items()} == public_shapes(variant, "diffusers")


PUBLISHED = {
    "2.1": dataclasses.replace(PLAIN_DEEPER, width=96, decoder_width=96, channels=16),
    "2.2": dataclasses.replace(PLAIN_DEEPER, patch=2, shortcuts=True, width=160, decoder_width=256, channels=48),
}


@pytest.mark.parity
@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_the_published_sizes_are_ours(config):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    foreign = wan_autoencoder._foreign_config(config)
    with torch.device("meta"):
        model = diffusers.AutoencoderKLWan(**{k: v for k, v in foreign.items() if not k.startswith("_")})
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    table = wan_autoencoder._names(config, "diffusers")
    assert {name: wan_autoencoder._their_shape(ours, shape) for ours, (name, shape) in table.items()} == expected


@pytest.mark.parity
def test_original_names_are_those_that_diffusers_converts(tmp_path):
    """Of Wan 2.1; the function knows its published number of blocks alone, and the names of Wan 2.2 not at all."""
    convert = pytest.importorskip("diffusers.loaders.single_file_utils").convert_wan_vae_to_diffusers
    params = params_of(PLAIN_DEEPER)
    original, expected = (
        load_file(save_wan_autoencoder(tmp_path / layout, PLAIN_DEEPER, params, MEAN_C, SCALE_C, layout))
        for layout in ("original", "diffusers")
    )
    found = convert(original)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parity
def test_what_is_written_loads_in_diffusers_and_agrees(pair, tmp_path):
    params = {name: np.asarray(value) for name, value in params_of(pair.config).items()}
    save_wan_autoencoder(tmp_path / "ours", pair.config, params, MEAN_C, SCALE_C)
    model = type(pair.model).from_pretrained(tmp_path / "ours").eval()
    config = model.config
    assert (config.latents_mean, config.latents_std) == (MEAN_C.tolist(), SCALE_C.tolist())
    assert (config.scale_factor_temporal, config.scale_factor_spatial) == (4, pair.config.space_stride)
    rng = np.random.default_rng(5)
    clip = rng.uniform(-1, 1, size=(1, 5, 16, 32, 3)).astype(np.float32)
    latent = rng.normal(size=(1, 2, 16 // pair.config.space_stride, 32 // pair.config.space_stride, 4))
    latent = latent.astype(np.float32)
    assert_same(pair.encode(params, clip, step=None), pair.their_latent(clip, model), "latent, written by us")
    found = np.clip(pair.decode(params, latent, step=None), -1, 1)
    assert_same(found, pair.their_clip(latent, model), "clip, written by us")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 16, 32), (5, 16, 32), (9, 48, 32), (17, 16, 32), (33, 16, 32)]
)
def test_a_clip_agrees_with_torch_there_and_back_whole_and_in_chunks(pair, frames, height, width):
    rng = np.random.default_rng(frames)
    clip = rng.uniform(-1, 1, size=(1, frames, height, width, 3)).astype(np.float32)
    stride = pair.config.space_stride
    latent = rng.normal(size=(1, 1 + (frames - 1) // 4, height // stride, width // stride, 4)).astype(np.float32)
    their_latent, their_clip = pair.their_latent(clip), pair.their_clip(latent)
    for step in (None, 1, 2):
        assert_same(pair.encode(pair.params, clip, step=step), their_latent, f"latent of {frames} frames, {step}")
        found = pair.decode(pair.params, latent, step=step)
        # Most numbers must lie inside of what torch cuts off.
        assert (np.abs(found) < 1).mean() > 0.5
        assert_same(np.clip(found, -1, 1), their_clip, f"clip of {frames} frames, {step}")
