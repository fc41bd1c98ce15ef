"""CLIP's two towers end in one space: what is read and refused; with transformers (marker parity), the same points."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sora_jax.core.errors import UserError
from sora_jax.models.clip_scores import ClipImages, ClipTexts
from tests.models.vision import test_clip as vision
from tests.small_encoder import write_clip

SPACE = 12


def write_whole_clip(folder, *, without=()):
    """Returns the folder of a CLIP with both towers, two projections and a tokenizer."""
    write_clip(folder)
    rng = np.random.default_rng(3)
    weights = load_file(folder / "model.safetensors") | vision.weights()
    text_width = weights["text_model.final_layer_norm.weight"].size
    for name, width in (("text_projection", text_width), ("visual_projection", vision.WIDTH)):
        weights[f"{name}.weight"] = rng.normal(size=(SPACE, width)).astype(np.float32)
    weights["logit_scale"] = np.zeros((), np.float32)
    save_file({name: value for name, value in weights.items() if name not in without}, folder / "model.safetensors")
    text = json.loads((folder / "config.json").read_text())
    images = {**vision.CONFIG, "hidden_act": "quick_gelu"}
    tree = {"model_type": "clip", "text_config": text, "vision_config": images, "projection_dim": SPACE}
    (folder / "config.json").write_text(json.dumps(tree))
    return folder


def image_points(images, frames):
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(images.features())(images.weights, images.fit(frames)))


def test_both_towers_end_in_one_space(tmp_path):
    folder = write_whole_clip(tmp_path)
    images, texts = ClipImages(folder), ClipTexts(folder)
    frames = np.stack([vision.image(seed=1), vision.image(seed=2)])
    points = image_points(images, frames)
    assert points.shape == (2, SPACE) == (2, texts.width) == (2, images.width)
    assert images.config.depth == vision.LAYERS
    assert np.abs(points[0] - points[1]).max() > 0.01
    assert texts([]).shape == (0, SPACE)


def test_the_end_of_a_text_is_cut_and_counted_and_its_neighbours_do_not_matter(tmp_path):
    texts = ClipTexts(write_whole_clip(tmp_path))
    long = "red " * 100
    assert (texts.positions, texts.count("red"), texts.count(long)) == (77, 3, 102)
    together = texts(["red", long, "red " * 75, "blue"])
    np.testing.assert_allclose(together[1], together[2], atol=1e-5)
    np.testing.assert_allclose(together[:1], texts(["RED"]), atol=1e-5)
    assert np.abs(together[0] - together[3]).max() > 0.01


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"visual_projection.weight is missing"):
        ClipImages(write_whole_clip(tmp_path, without=("visual_projection.weight",)))
    with pytest.raises(UserError, match=r"vision_model.post_layernorm.bias is missing"):
        ClipImages(write_whole_clip(tmp_path, without=("vision_model.post_layernorm.bias",)))
    with pytest.raises(UserError, match=r"has no text_projection.weight of a text tower 16 wide"):
        ClipTexts(write_whole_clip(tmp_path, without=("text_projection.weight",)))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config.json beside it, which says the heads and the activation"):
        ClipImages(tmp_path)


@pytest.mark.parity
def test_points_agree_with_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = write_whole_clip(tmp_path)
    model = transformers.CLIPModel.from_pretrained(folder, attn_implementation="eager").eval()
    images, texts = ClipImages(folder), ClipTexts(folder)
    frames = np.stack([vision.image(seed=1), vision.image(seed=2)])
    words = ["red", "a blue square"]
    tokens = [[texts._begin, *texts._pieces.split(text), texts._end] for text in words]
    pixels = torch.from_numpy(images.fit(frames).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=pixels)
        read = [model.get_text_features(input_ids=torch.tensor([one])) for one in tokens]
    seen, *read = (getattr(one, "pooler_output", one).numpy() for one in (seen, *read))
    assert seen.std() > 0.1
    np.testing.assert_allclose(image_points(images, frames), seen, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(texts(words), np.concatenate(read), rtol=1e-4, atol=1e-4)
