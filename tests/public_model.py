"""Tiny public models that tests write as people download them, without torch: safetensors, JSON, a tokenizer."""

import copy
import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sora_jax.models.interop.wan import save_wan
from sora_jax.models.interop.wan_autoencoder import save_wan_autoencoder
from sora_jax.models.interop.wan_shape import WanShape
from sora_jax.models.interop.weights import WEIGHTS_FILE
from sora_jax.models.transformer import Transformer
from sora_jax.models.transformer_config import TransformerConfig
from tests import small
from tests.small import random_params

TEXT_DIM = 16
WORDS = ("a", "red", "circle", "blue", "square", "moves", "left", "right", "dark")
# As Wan 2.1's, with a level less: four frames and four pixels to a position.
AUTOENCODER = AutoencoderConfig(
    patch=1,
    width=4,
    multipliers=(1, 1, 1),
    space_down=(True, True),
    time_down=(True, True),
    blocks=1,
    decoder_width=4,
    decoder_blocks=2,
    channels=16,
    attention=True,
    shortcuts=False,
    patch_kernel=3,
    linear_heads=False,
    bottleneck="kl",
    codes=None,
    remat=False,
)
TRANSFORMER = dataclasses.replace(
    small.TRANSFORMER,
    patch=(1, 2, 2),
    width=24,
    depth=1,
    mlp_width=32,
    frequency_dim=16,
    rope_theta=10_000.0,
    time_rate=4.0,
    pooled_text=False,
    place_features=False,
    text_pad_to=512,
)


@functools.cache
def _shapes(config: TransformerConfig | AutoencoderConfig) -> dict[str, Any]:
    widths: dict[str, Any] = {}
    kind: Any = Autoencoder
    if config != AUTOENCODER:
        kind, widths = Transformer, {"patch_width": 4 * AUTOENCODER.channels, "text_dim": TEXT_DIM}
    return abstract_model(lambda key: kind(config, **widths, rngs=Rngs(key)))[1]


def transformer_params(seed: int, **changes: Any) -> dict[str, jax.Array]:
    """Returns random parameters of the tiny transformer."""
    return random_params(_shapes(dataclasses.replace(TRANSFORMER, **changes)), seed)


def write_autoencoder(folder: Path, *, seed: int = 1) -> None:
    """Writes the autoencoder as diffusers does, and no statistics: those are constants in the public code."""
    nothing = np.zeros(AUTOENCODER.channels)
    save_wan_autoencoder(folder, AUTOENCODER, random_params(_shapes(AUTOENCODER), seed), nothing, nothing)
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in config.items() if name not in ("latents_mean", "latents_std")}
    (folder / "config.json").write_text(json.dumps(config))


def umt5(seed: int = 2) -> dict[str, np.ndarray]:
    """Returns weights of a text encoder of one block, by the names of transformers."""
    rng, block = np.random.default_rng(seed), "encoder.block.0."
    shapes = {
        "shared.weight": (3 + len(WORDS), TEXT_DIM),
        f"{block}layer.0.SelfAttention.relative_attention_bias.weight": (32, 2),
        f"{block}layer.1.DenseReluDense.wi_0.weight": (24, TEXT_DIM),
        f"{block}layer.1.DenseReluDense.wi_1.weight": (24, TEXT_DIM),
        f"{block}layer.1.DenseReluDense.wo.weight": (TEXT_DIM, 24),
        **{f"{block}layer.0.SelfAttention.{name}.weight": (TEXT_DIM, TEXT_DIM) for name in "qkvo"},
    }
    norms = [f"{block}layer.0.layer_norm", f"{block}layer.1.layer_norm", "encoder.final_layer_norm"]
    weights = {name: rng.normal(size=shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    weights |= {f"{name}.weight": np.ones(TEXT_DIM) for name in norms}
    return {name: value.astype(ml_dtypes.bfloat16) for name, value in weights.items()}


UMT5_CONFIG = {
    "model_type": "umt5",
    "architectures": ["UMT5EncoderModel"],
    "d_model": TEXT_DIM,
    "d_kv": 8,
    "d_ff": 24,
    "num_heads": 2,
    "num_layers": 1,
    "vocab_size": 3 + len(WORDS),
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
}


def write_text_encoder(folder: Path, tokenizer: Path) -> None:
    """Writes the text encoder, and a tokenizer of whole words."""
    for one in (folder, tokenizer):
        one.mkdir(parents=True, exist_ok=True)
    save_file(umt5(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(UMT5_CONFIG))
    words = ("<pad>", "</s>", "<unk>", *WORDS)
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(list(words[:3]))
    made.save(str(tokenizer / "tokenizer.json"))


def shape_of(**changes: Any) -> WanShape:
    """Returns the shape of the tiny transformer."""
    config = dataclasses.replace(TRANSFORMER, **changes)
    return WanShape.of(config, patch_width=4 * AUTOENCODER.channels, text_dim=TEXT_DIM)


def write_diffusers(folder: Path, seeds: tuple[int, ...] = (5,), **index: Any) -> Path:
    """Writes a pipeline of diffusers with a transformer of each seed; `index` goes into model_index.json."""
    parts = ["transformer", "transformer_2"][: len(seeds)]
    for part, seed in zip(parts, seeds, strict=True):
        save_wan(folder / part, transformer_params(seed), shape_of())
    write_autoencoder(folder / "vae")
    write_text_encoder(folder / "text_encoder", folder / "tokenizer")
    listed = {part: ["diffusers", "WanTransformer3DModel"] for part in parts}
    known = {"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"], "image_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(known | listed | index))
    return folder


def write_original(folder: Path, seeds: tuple[int, ...] = (5,)) -> Path:
    """Writes the layout of the public code, with the text encoder and the autoencoder as ComfyUI's single files."""
    parts = [folder] if len(seeds) == 1 else [folder / "high_noise_model", folder / "low_noise_model"]
    for part, seed in zip(parts, seeds, strict=True):
        save_wan(part, transformer_params(seed), dataclasses.replace(shape_of(), layout="original"))
    write_autoencoder(folder / "parts")
    (folder / "parts" / WEIGHTS_FILE).rename(folder / "wan_2.1_vae.safetensors")
    write_text_encoder(folder / "parts", folder / "google" / "umt5-xxl")
    weights = umt5() | {"spiece_model": np.zeros(4, np.uint8)}
    save_file(weights, folder / "umt5_xxl_fp16.safetensors")
    return folder


def adapter_config(config: Any, model: str, stages: Mapping[str, tuple[float, float] | None], *, steps: int) -> Any:
    """Returns a toy config that trains an adapter in each of the stages, in the range of noise that it names."""
    config.model, videos = model, config.stages.videos
    videos.update({"steps": steps, "mix": {"images": 0.0, "videos": 1.0}, "known": {"none": 1.0}})
    videos.known.update(dict.fromkeys(("first", "last", "ends", "random_frames", "region"), 0.0))
    with config.unlocked():
        for name, noise_range in stages.items():
            config.stages[name] = copy.deepcopy(videos)
            config.stages[name].noise_range = noise_range
    config.run = ("prepare", *stages)
    config.shapes.num_clips, config.shapes.sides, config.packing.window = 16, ((16, 16),), 16
    config.packing.rows, config.packing.text_tokens, config.text.max_tokens = 8, 64, 16
    config.transformer.lora.rank, config.optimizer.name = 2, "adamw"
    config.diffusion.noise.uniform_share = 1.0
    config.log.samples_per_stage, config.sampling.window = 0, 5
    return config
