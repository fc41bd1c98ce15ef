"""VideoMAE: which files are read, windows of long clips, and (marker parity) the features of transformers' network."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from sora_jax.core.errors import UserError
from sora_jax.models import videomae


def random_weights(**changes):
    rng = np.random.default_rng(0)
    weights = {}
    form = {"width": 384, "depth": 2, "mlp_width": 48, "patch": 56} | changes
    for name, shape in videomae.shapes(**form).items():
        scale = 0.3 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
        centre = float("norm" in name and name.endswith("weight"))
        weights[name] = (centre + scale * rng.normal(size=shape)).astype(np.float32)
    return weights


def test_a_file_is_read_by_its_shapes_and_others_end_in_a_sentence(tmp_path):
    path = tmp_path / "videomae.safetensors"
    weights = random_weights(depth=1, patch=16)
    save_file({**weights, "head.weight": np.zeros((174, 384), np.float32)}, path)
    loaded = videomae.load_videomae(path)
    assert loaded.keys() == weights.keys()
    assert videomae.width_of(loaded) == 384
    # Before fine-tuning there is a decoder, and no norm of the mean.
    save_file({name: value for name, value in weights.items() if "fc_norm" not in name}, path)
    with pytest.raises(UserError, match=r"fc_norm.weight is missing"):
        videomae.load_videomae(path)
    save_file({**weights, "patch_embed.proj.weight": np.zeros((40, 3, 2, 4, 4), np.float32)}, path)
    with pytest.raises(UserError, match=r"holds no VideoMAE of a width in 384, 768, 1024, 1280, 1408"):
        videomae.load_videomae(path)


def test_the_giant_has_a_billion_weights():
    giant = videomae.shapes(width=1408, depth=40, mlp_width=6144, patch=14)
    assert sum(int(np.prod(shape)) for shape in giant.values()) == pytest.approx(1.01e9, rel=0.01)


def test_a_longer_clip_is_the_mean_over_its_windows():
    weights = random_weights(depth=1)
    clip = np.random.default_rng(1).uniform(size=(1, 20, 224, 224, 3)).astype(np.float32)
    features = jax.jit(videomae.videomae_features)
    windows = [features(weights, clip[:, start : start + 16])[0] for start in (0, 4)]
    np.testing.assert_allclose(features(weights, clip)[0], np.mean(windows, axis=0), rtol=1e-4, atol=1e-5)
    assert np.abs(windows[0] - windows[1]).max() > 0.01


def test_clips_of_any_size_are_scaled_and_nothing_is_taken_off():
    fitted = videomae.fit_videomae(np.full((1, 2, 9, 30, 3), 51, np.uint8))
    assert fitted.shape == (1, 2, 224, 224, 3)
    np.testing.assert_allclose(fitted, 0.2, rtol=1e-6)


def theirs(name):
    """Returns transformers' name of ours."""
    whole = {"fc_norm": "fc_norm", "patch_embed.proj": "videomae.embeddings.patch_embeddings.projection"}
    layers = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    stem, part = name.rsplit(".", 1)
    if stem in whole:
        return f"{whole[stem]}.{part}"
    _, number, layer = stem.split(".", 2)
    return f"videomae.encoder.layer.{number}.{layers[layer]}.{part}"


@pytest.mark.parity
def test_the_features_agree_with_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    weights = random_weights()
    config = transformers.VideoMAEConfig(
        image_size=224,
        patch_size=56,
        hidden_size=384,
        num_hidden_layers=2,
        num_attention_heads=6,
        intermediate_size=48,
        layer_norm_eps=1e-6,
        qkv_bias=True,
        use_mean_pooling=True,
        attn_implementation="eager",
    )
    model = transformers.VideoMAEForVideoClassification(config).eval()
    state = model.state_dict()
    for name, value in weights.items():
        if ".attn.qkv" not in name and "_bias" not in name:
            state[theirs(name)] = torch.from_numpy(value)
    for number in range(2):
        mine, other = f"blocks.{number}.attn", f"videomae.encoder.layer.{number}.attention.attention"
        parts = np.split(weights[f"{mine}.qkv.weight"], 3)
        for one, value in zip(("query", "key", "value"), parts, strict=True):
            state[f"{other}.{one}.weight"] = torch.from_numpy(value.copy())
        for one, our in (("query", "q_bias"), ("value", "v_bias")):
            name = f"{other}.{one}.bias" if f"{other}.{one}.bias" in state else f"{other}.{our}"
            state[name] = torch.from_numpy(weights[f"{mine}.{our}"])
        if f"{other}.key.bias" in state:
            state[f"{other}.key.bias"] = torch.zeros(384)
    model.load_state_dict(state)
    found = []
    model.fc_norm.register_forward_hook(lambda module, given, made: found.append(made))
    clip = np.random.default_rng(1).uniform(size=(1, 16, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        model(torch.from_numpy(clip.transpose(0, 1, 4, 2, 3).copy()))
    expected = found[0].numpy()
    ours = jax.jit(videomae.videomae_features)(weights, clip)
    assert expected.std() > 0.1
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
