"""Wan's weights: names, shapes and values there and back; with torch (marker parity), the same predictions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from sora_jax.core.errors import UserError
from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.models.interop import wan
from sora_jax.models.transformer import Transformer
from sora_jax.video import patches, shapes

FOREIGN = {
    "_class_name": "WanTransformer3DModel",
    "added_kv_proj_dim": None,
    "attention_head_dim": 12,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "ffn_dim": 64,
    "freq_dim": 32,
    "image_dim": None,
    "in_channels": 4,
    "num_attention_heads": 2,
    "num_layers": 2,
    "out_channels": 4,
    "patch_size": [1, 2, 2],
    "pos_embed_seq_len": None,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
    "text_dim": 16,
}
CONFIG = wan.config_from_wan(FOREIGN, time_rate=1.0, remat="none")
PATCH = CONFIG.patch
K_SLOT = 7  # text tokens of a row, more than any prompt below


def linear(name, out_dim, in_dim):
    return {f"{name}.bias": (out_dim,), f"{name}.weight": (out_dim, in_dim)}


def public_shapes():
    """Returns the names and shapes of diffusers' tiny model, written out from its layers."""
    table = {
        "patch_embedding.weight": (24, 4, 1, 2, 2),
        "patch_embedding.bias": (24,),
        "scale_shift_table": (1, 2, 24),
        **linear("condition_embedder.text_embedder.linear_1", 24, 16),
        **linear("condition_embedder.text_embedder.linear_2", 24, 24),
        **linear("condition_embedder.time_embedder.linear_1", 24, 32),
        **linear("condition_embedder.time_embedder.linear_2", 24, 24),
        **linear("condition_embedder.time_proj", 144, 24),
        **linear("proj_out", 16, 24),
    }
    for block in ("blocks.0", "blocks.1"):
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                table |= linear(f"{block}.{attention}.{part}", 24, 24)
            table |= {f"{block}.{attention}.norm_{side}.weight": (24,) for side in "qk"}
        table |= {f"{block}.norm2.weight": (24,), f"{block}.norm2.bias": (24,)}
        table |= linear(f"{block}.ffn.net.0.proj", 64, 24) | linear(f"{block}.ffn.net.2", 24, 64)
        table |= {f"{block}.scale_shift_table": (1, 6, 24)}
    return table


def random_weights():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in public_shapes().items()}


def build(key):
    return Transformer(CONFIG, **wan.widths_from_wan(FOREIGN), rngs=nnx.Rngs(key))


def test_every_parameter_of_ours_is_filled_with_its_shape():
    _, expected, _ = abstract_model(build)
    params = wan.from_wan(random_weights())
    assert {n: v.shape for n, v in params.items()} == {n: v.shape for n, v in expected.items()}
    assert {v.dtype for v in params.values()} == {np.dtype(np.float32)}


def test_there_and_back_is_exact():
    weights = random_weights()
    back = wan.to_wan(wan.from_wan(weights), patch=PATCH)
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_the_patch_embedding_is_the_convolution():
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(24, 4, 1, 2, 2)).astype(np.float32)
    latent_THWC = rng.normal(size=(1, 2, 2, 4)).astype(np.float32)
    expected = sum(
        weight[:, c, 0, i, j] * latent_THWC[0, i, j, c] for c in range(4) for i in range(2) for j in range(2)
    )
    kernel = wan.from_wan({**random_weights(), "patch_embedding.weight": weight})["patch_embedding.kernel"]
    np.testing.assert_allclose((patches.patchify(latent_THWC, PATCH) @ kernel)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["blocks.1.attn2.norm_k.weight", "proj_out.bias"])
def test_a_missing_or_surplus_name_is_listed(name):
    weights = random_weights()
    value = weights.pop(name)
    with pytest.raises(UserError, match=f"missing {name}; not known none"):
        wan.from_wan(weights)
    with pytest.raises(UserError, match="missing none; not known img_emb"):
        wan.from_wan({**weights, name: value, "img_emb": value})


def test_parameters_that_wan_lacks_are_listed():
    params = wan.from_wan(random_weights())
    with pytest.raises(UserError, match=r"not known place\.bias"):
        wan.to_wan({**params, "place.bias": np.zeros(24)}, patch=PATCH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 36}, "in_channels 36, out_channels 4"),
        ({"image_dim": 1280}, "image_dim is 1280"),
        ({"eps": 1e-5}, "eps is 1e-05"),
        ({"_class_name": "CogVideoXTransformer3DModel"}, "_class_name is 'CogVideoX"),
    ],
)
def test_a_config_beyond_our_block_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        wan.config_from_wan({**FOREIGN, **change}, time_rate=1.0, remat="none")


def test_another_config_json_is_refused():
    with pytest.raises(UserError, match="lacks patch_size"):
        wan.config_from_wan({"_class_name": "WanPipeline"}, time_rate=1.0, remat="none")


def test_files_are_read_whole_or_in_parts(tmp_path):
    weights = random_weights()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    stem = "diffusion_pytorch_model"
    save_file(weights, whole / f"{stem}.safetensors")
    names = sorted(weights)
    files = {f"{stem}-00001-of-00002.safetensors": names[:9], f"{stem}-00002-of-00002.safetensors": names[9:]}
    for file, some in files.items():
        save_file({name: weights[name] for name in some}, parts / file)
    index = {"weight_map": {name: file for file, some in files.items() for name in some}}
    (parts / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    expected = wan.from_wan(weights)
    for path in (whole, whole / f"{stem}.safetensors", parts):
        loaded = wan.load_wan(path, CONFIG)
        assert loaded.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(loaded[name], value, err_msg=name)


def test_half_precision_files_become_float32(tmp_path):
    weights = {name: value.astype(jnp.bfloat16) for name, value in random_weights().items()}
    save_file(weights, tmp_path / "half.safetensors")
    loaded = wan.load_wan(tmp_path / "half.safetensors", CONFIG)
    expected = weights["proj_out.weight"].astype(np.float32).T
    np.testing.assert_array_equal(loaded["proj_out.kernel"], expected)
    assert loaded["proj_out.kernel"].dtype == np.float32


def test_files_that_cannot_be_used_end_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        wan.load_wan(tmp_path, CONFIG)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(random_weights(), path)
    deeper = dataclasses.replace(CONFIG, depth=3)
    with pytest.raises(UserError, match=r"blocks\.attn1\.norm_k\.scale is \(2, 24\) instead of \(3, 24\)"):
        wan.load_wan(tmp_path, deeper)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        wan.load_wan(tmp_path, CONFIG)


@dataclasses.dataclass(frozen=True)
class Request:
    """One segment: a noisy latent, its text, its timestep and how many leading frames are known (timestep 0)."""

    latent_THWC: np.ndarray
    text_KE: np.ndarray
    timestep: float
    known_frames: int = 0


def request(size, timestep, *, text_tokens, seed, known_frames=0):
    rng = np.random.default_rng(seed)
    latent_THWC = rng.normal(size=(*size, 4)).astype(np.float32)
    text_KE = rng.normal(size=(text_tokens, 16)).astype(np.float32)
    return Request(latent_THWC, text_KE, timestep, known_frames)


VIDEO, IMAGE = (3, 4, 6), (1, 4, 4)


def known_tokens(one):
    """Returns a bool of each token of a request, in raster order."""
    frame_L = shapes.positions(shapes.token_grid(one.latent_THWC.shape[:3], PATCH), 1.0)[:, 0]
    return frame_L < one.known_frames


@jax.jit
def predict(params, tokens_BLP, **inputs):
    structure, _, _ = abstract_model(build)
    return merge_model(structure, params)(tokens_BLP, **inputs).tokens_BLP


def ours(params, requests, *, length, text_length):
    """Returns the predicted latent of each request, packed together in one row with padding behind."""
    segments = len(requests)
    tokens_BLP, position_BL3 = np.zeros((1, length, 16), np.float32), np.zeros((1, length, 3), np.float32)
    segment_BL, level_BL = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
    text_BKE, text_segment_BK = (
        np.zeros((1, text_length, 16), np.float32),
        np.zeros((1, text_length), np.int32),
    )
    levels_BG = np.zeros((1, 2 * segments), np.float32)
    start, text_start, places = 0, 0, []
    for slot, one in enumerate(requests):
        grid = shapes.token_grid(one.latent_THWC.shape[:3], PATCH)
        here = slice(start, start + shapes.count(grid))
        there = slice(text_start, text_start + len(one.text_KE))
        tokens_BLP[0, here] = patches.patchify(one.latent_THWC, PATCH)
        position_BL3[0, here] = shapes.positions(grid, 1.0)
        segment_BL[0, here] = slot + 1
        level_BL[0, here] = slot + segments * known_tokens(one)
        levels_BG[0, slot] = one.timestep / 1000
        text_BKE[0, there], text_segment_BK[0, there] = one.text_KE, slot + 1
        start, text_start = here.stop, there.stop
        places.append((here, grid))

    prediction_BLP = predict(
        jax.tree.map(jnp.asarray, params),
        tokens_BLP,
        levels_BG=levels_BG,
        level_BL=level_BL,
        position_BL3=position_BL3,
        segment_BL=segment_BL,
        extent_BL3=np.ones_like(position_BL3),
        text_BKE=text_BKE,
        text_segment_BK=text_segment_BK,
    )
    row_LP = np.asarray(prediction_BLP)[0]
    return [patches.unpatchify(row_LP[here], grid=grid, patch=PATCH, channels=4) for here, grid in places]


@pytest.fixture(scope="module")
def model():
    """Returns a tiny random torch model in which no parameter has a special value."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(**{k: v for k, v in FOREIGN.items() if not k.startswith("_")})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def params(model, tmp_path_factory):
    """Returns our parameters as loaded from what diffusers saves."""
    folder = tmp_path_factory.mktemp("wan")
    model.save_pretrained(folder)
    foreign = json.loads((folder / "config.json").read_text())
    assert wan.config_from_wan(foreign, time_rate=1.0, remat="none") == CONFIG
    assert wan.widths_from_wan(foreign) == {"patch_width": 16, "text_dim": 16}
    return wan.load_wan(folder, CONFIG)


def theirs(model, one):
    """Returns torch's predicted latent of one request, alone."""
    torch = pytest.importorskip("torch")
    timestep = torch.tensor([one.timestep])
    if one.known_frames:
        # Wan 2.2 takes a timestep of each token; known frames have 0.
        timestep = torch.from_numpy(np.where(known_tokens(one), 0.0, one.timestep).astype(np.float32))[None]
    with torch.no_grad():
        output = model(
            hidden_states=torch.from_numpy(one.latent_THWC.transpose(3, 0, 1, 2)[None]),
            timestep=timestep,
            encoder_hidden_states=torch.from_numpy(one.text_KE[None]),
        ).sample
    return output[0].numpy().transpose(1, 2, 3, 0)


def assert_same(found, expected):
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parity
def test_the_template_is_the_public_model(model):
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert found == public_shapes()


@pytest.mark.parity
@pytest.mark.parametrize("size", [VIDEO, IMAGE])
@pytest.mark.parametrize("timestep", [0.0, 500.0, 999.0])
def test_one_segment_agrees_with_torch(model, params, size, timestep):
    one = request(size, timestep, text_tokens=5, seed=1)
    (found,) = ours(params, [one], length=20, text_length=K_SLOT)
    assert_same(found, theirs(model, one))


@pytest.mark.parity
def test_known_frames_agree_with_torch_timesteps_per_token(model, params):
    one = request(VIDEO, 700.0, text_tokens=5, seed=2, known_frames=1)
    (found,) = ours(params, [one], length=20, text_length=K_SLOT)
    assert_same(found, theirs(model, one))
    different = theirs(model, dataclasses.replace(one, known_frames=0))
    assert np.abs(found - different).max() > 1e-2


@pytest.mark.parity
def test_two_packed_segments_each_agree_with_torch_alone(model, params):
    requests = [
        request(VIDEO, 999.0, text_tokens=3, seed=3, known_frames=1),
        request(IMAGE, 250.0, text_tokens=2, seed=4),
    ]
    for found, one in zip(ours(params, requests, length=24, text_length=K_SLOT), requests, strict=True):
        assert_same(found, theirs(model, one))
