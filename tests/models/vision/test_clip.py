"""CLIP's image tower: files that are read and refused, how images are fitted; with transformers, the same states."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from sora_jax.core.errors import UserError
from sora_jax.models.vision.clip import describe_image_encoder, fit_image, load_image_encoder

WIDTH, HEADS, MLP, PATCH, SIDE, LAYERS = 16, 2, 24, 4, 12, 3
PREFIX = "vision_model."


def weights(seed=0):
    """Returns a tower in its public names; the last block and the norm after it are not used."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embeddings.class_embedding": (WIDTH,),
        "embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.position_embedding.weight": ((SIDE // PATCH) ** 2 + 1, WIDTH),
        "pre_layrnorm.weight": (WIDTH,),
        "pre_layrnorm.bias": (WIDTH,),
        "post_layernorm.weight": (WIDTH,),
        "post_layernorm.bias": (WIDTH,),
    }
    for n in range(LAYERS):
        layer = f"encoder.layers.{n}."
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{norm}.weight": (WIDTH,), f"{layer}{norm}.bias": (WIDTH,)}
        for one in ("q", "k", "v", "out"):
            shapes |= {
                f"{layer}self_attn.{one}_proj.weight": (WIDTH, WIDTH),
                f"{layer}self_attn.{one}_proj.bias": (WIDTH,),
            }
        shapes |= {f"{layer}mlp.fc1.weight": (MLP, WIDTH), f"{layer}mlp.fc1.bias": (MLP,)}
        shapes |= {f"{layer}mlp.fc2.weight": (WIDTH, MLP), f"{layer}mlp.fc2.bias": (WIDTH,)}
    return {PREFIX + name: rng.normal(size=shape).astype(np.float32) * 0.5 for name, shape in shapes.items()}


CONFIG = {
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": SIDE,
    "patch_size": PATCH,
    "hidden_act": "gelu",
}


def folder(tmp_path, *, config=CONFIG, **changes):
    arrays = {name: value for name, value in {**weights(), **changes}.items() if value is not None}
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def image(height=20, width=31, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_a_folder_says_its_shape_and_gives_the_states_before_the_last_block(tmp_path):
    path = folder(tmp_path)
    config = describe_image_encoder(path)
    assert (config.depth, config.tokens, config.heads, config.side) == (LAYERS - 1, 10, HEADS, SIDE)
    encoder = load_image_encoder(path)
    states_ME = encoder.encode(image())
    assert states_ME.shape == (10, WIDTH)
    assert np.all(np.isfinite(states_ME))
    # Of one file without a config heads are as wide as in all public towers of that width.
    assert describe_image_encoder(path / "model.safetensors") == config
    (path / "config.json").unlink()
    assert describe_image_encoder(path).heads == 1


@pytest.mark.parametrize("change", [{"num_attention_heads": "2"}, {"num_attention_heads": 0}, {"hidden_act": []}])
def test_a_config_of_which_no_tower_comes_is_told(tmp_path, change):
    with pytest.raises(UserError, match=r"heads, which do not divide|hidden_act .* is none of"):
        describe_image_encoder(folder(tmp_path, config=CONFIG | change))


def test_names_without_the_old_prefix_are_the_same_tower(tmp_path):
    before = load_image_encoder(folder(tmp_path)).encode(image())
    save_file({name.removeprefix(PREFIX): value for name, value in weights().items()}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(load_image_encoder(tmp_path).encode(image()), before)


def test_the_fingerprint_knows_weights_and_fit(tmp_path):
    path = folder(tmp_path)
    marks = {load_image_encoder(path, fit=fit).fingerprint() for fit in ("squash", "crop")}
    other = {f"{PREFIX}pre_layrnorm.bias": np.ones(WIDTH, np.float32)}
    assert len(marks | {load_image_encoder(folder(tmp_path, **other)).fingerprint()}) == 3


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        ({**CONFIG, "hidden_act": "relu"}, {}, "relu"),
        (CONFIG, {f"{PREFIX}embeddings.patch_embedding.weight": None}, "no image tower"),
        (CONFIG, {f"{PREFIX}encoder.layers.1.mlp.fc2.bias": None}, "layers.1.mlp.fc2.bias is missing"),
    ],
)
def test_what_is_no_tower_is_refused(tmp_path, config, changes, said):
    with pytest.raises(UserError, match=said):
        load_image_encoder(folder(tmp_path, config=config, **changes))


def test_an_image_of_the_right_size_is_normalised_and_nothing_else():
    pixels = image(SIDE, SIDE)
    squashed, cropped = (fit_image(pixels, side=SIDE, fit=fit) for fit in ("squash", "crop"))
    np.testing.assert_allclose(squashed, cropped, atol=1e-6)
    np.testing.assert_allclose(squashed[0, 0, 2], (pixels[0, 0, 2] / 255 - 0.40821073) / 0.27577711, rtol=1e-5)


def test_squashing_shows_the_margins_and_cropping_does_not():
    wide = np.zeros((SIDE, 4 * SIDE, 3), np.uint8)
    wide[:, :SIDE] = 255
    assert np.ptp(fit_image(wide, side=SIDE, fit="squash")) > 3
    assert np.ptp(fit_image(wide, side=SIDE, fit="crop")[..., 0]) == 0


@pytest.mark.parity
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_states_agree_with_transformers(tmp_path, activation):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(**{**CONFIG, "hidden_act": activation}, attn_implementation="eager")
    model = transformers.CLIPVisionModel(config).eval()
    named = weights()
    theirs = {
        name if name in model.state_dict() else name.removeprefix(PREFIX): torch.from_numpy(value)
        for name, value in named.items()
    }
    model.load_state_dict(theirs)
    encoder = load_image_encoder(folder(tmp_path, config={**CONFIG, "hidden_act": activation}), fit="crop")
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pixels = image()
    with torch.no_grad():
        inputs = processor(images=pixels, return_tensors="pt")
        expected = model(**inputs, output_hidden_states=True).hidden_states[-2][0].numpy()
    np.testing.assert_allclose(
        fit_image(pixels, side=SIDE, fit="crop"), inputs["pixel_values"][0].permute(1, 2, 0), atol=1e-6
    )
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(encoder.encode(pixels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(20, 31), (5, 7)])
def test_squashing_agrees_with_torch(size):
    torch = pytest.importorskip("torch")
    pixels = image(*size)
    scaled = (
        torch.nn.functional.interpolate(
            torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1, size=(SIDE, SIDE), mode="bicubic"
        )[0]
        .permute(1, 2, 0)
        .numpy()
        * 0.5
        + 0.5
    )
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    np.testing.assert_allclose(fit_image(pixels, side=SIDE, fit="squash"), (scaled - mean) / std, atol=1e-5)
