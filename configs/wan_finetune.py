r"""All weights of a public Wan model, trained further on your clips.

  python -m sora_jax.plan --config=configs/wan_finetune.py:t2v_14b --topology=v5p:2x2x4
  python -m sora_jax.main --config=configs/wan_finetune.py:t2v_14b --config.model=DIR --config.data.path=CLIPS \
    --workdir=runs/mine

After the colon stands a variant: t2v_1_3b, t2v_14b, i2v_14b_480p, i2v_14b_720p, flf2v_14b, t2v_a14b, i2v_a14b, ti2v_5b.
DIR is the model as it was downloaded; a plan needs none. CLIPS is a folder of captioned clips (docs/data.md), which
keep their sizes: each is scaled down until it has the tokens of the variant's own size at most, at its rate.

Noise levels are those that the variant is sampled with: uniform ones, shifted. Of two experts (A14B) each has a stage
that draws from its range alone and begins with its own weights. Memory of weights, moments, averages and gradients is
20 bytes a parameter, over all chips. Steps and rates are untried; `configs/wan_lora.py` trains 1 % of that.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import autoencoder_f8t4c16, autoencoder_f16t4c48, base
from sora_jax.models.interop.variants import FREQUENCY_DIM, PATCH, ROPE_THETA, TEXT_TOKENS, VARIANTS, Variant

# Rows that a batch has at least; a row holds one clip of the usual size, or many that are smaller.
_ROWS = {"t2v_1_3b": 4, "ti2v_5b": 8}
# A row is a multiple of it: of what kernels take at a time, on each of several devices.
_MULTIPLE = 2048
# Of the public models whatever is trained of them.
_COMMON = {
    "precision": "bfloat16",
    "mesh.data": 1,
    "mesh.fsdp": None,
    "data.source": "folder",
    "data.min_tokens": 64,
    "text.encoder": "umt5",
    "text.max_tokens": TEXT_TOKENS,
    "transformer.patch": PATCH,
    "transformer.frequency_dim": FREQUENCY_DIM,
    "transformer.rope_theta": ROPE_THETA,
    "transformer.text_pad_to": TEXT_TOKENS,
    "transformer.pooled_text": False,
    "transformer.place_features": False,
    "transformer.remat": "full",
    "packing.text_tokens": 4096,
    "packing.segments": 32,
    "diffusion.caption_dropout": 0.1,
    "diffusion.path.prediction": "velocity",
    "diffusion.noise.uniform_share": 1.0,
    "diffusion.loss_bands": (0.25, 0.5, 0.75, 0.9),
    "optimizer.name": "adamw",
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.99,
    "optimizer.weight_decay": 0.01,
    "codec.chunk_frames": 16,
    "checkpoint.every_steps": 250,
    "sampling.solver": "unipc",
    "sampling.grid": "wan",
    "sampling.guidance.interval": (0.0, 1.0),
    "sampling.prompts": (
        "a white dog walks along a park road",
        "a person pours tea into a glass",
    ),
}
_STEPS, _RATE = 2000, 1e-5


def get_config(variant: str = "t2v_1_3b") -> ConfigDict:
    """Returns the config that trains all weights of `variant`, a key of `VARIANTS`."""
    return stages(of_variant(variant), variant, steps=_STEPS, rate=_RATE)


def of_variant(name: str) -> ConfigDict:
    """Returns the config of a variant, but for its stages; raises ValueError for a name that is none."""
    if name not in VARIANTS:
        raise ValueError(f"{name!r} is none of {', '.join(VARIANTS)}")
    variant = VARIANTS[name]
    c: Any = base.get_config()
    public = {16: autoencoder_f8t4c16, 48: autoencoder_f16t4c48}[variant.out_channels]
    shape = public.get_config().to_dict()["autoencoder"]
    c.update_from_flattened_dict({f"autoencoder.{key}": value for key, value in shape.items() if value is not None})
    c.update_from_flattened_dict(_COMMON)
    tokens = _tokens(variant, c.autoencoder.space_down, patch=c.autoencoder.patch)
    row = -(-tokens // _MULTIPLE) * _MULTIPLE
    c.update_from_flattened_dict(
        {
            "data.fps": variant.fps,
            "data.max_frames": variant.frames,
            "data.max_tokens": row,
            "packing.tokens": row,
            "packing.rows": _ROWS.get(name, 16),
            "transformer.width": variant.width,
            "transformer.depth": variant.depth,
            "transformer.heads": variant.heads,
            "transformer.mlp_width": variant.mlp_width,
            "transformer.time_rate": variant.time_rate,
            "diffusion.noise.uniform_shift": variant.shift,
            "sampling.steps": variant.steps,
            "sampling.fps": variant.fps,
            "sampling.size": variant.sizes[0],
            "sampling.frames": variant.frames,
            "sampling.shift": variant.shift,
            "sampling.guidance.scale": variant.guidance[0],
            "sampling.known_guidance": variant.guidance[0],
        }
    )
    if variant.experts > 1:
        c.sampling.low_guidance = variant.guidance[1]
    if variant.image_dim is not None:
        # Each takes room for the tokens of its images (257, or 514), there or not: as many as texts of the longest.
        c.packing.segments = c.packing.text_tokens // TEXT_TOKENS
    if variant.takes_image:
        c.transformer.given_channels = variant.in_channels - variant.out_channels
    for key in ("image_dim", "image_positions"):
        if getattr(variant, key) is not None:
            c.transformer[key] = getattr(variant, key)
    return c


def stages(c: Any, name: str, *, steps: int, rate: float) -> ConfigDict:
    """Returns `c` with the stages of a variant: clips are prepared once, then each of its transformers is trained."""
    variant = VARIANTS[name]
    ranges = {"videos": None}
    if variant.boundary is not None:
        ranges = {"high": (variant.boundary, 1.0), "low": (0.0, variant.boundary)}
    found: Any = ConfigDict({"prepare": c.stages.prepare})
    found.prepare.batch = 1
    for stage, noise_range in ranges.items():
        flat = base.schedule(rate, warmup_steps=100, decay_share=0.0, final_share=1.0)
        found[stage] = base.diffusion_stage(steps=steps, schedule=flat, images=0.0)
        found[stage].noise_range = noise_range
        found[stage].known.update(_known(variant))
        found[stage].optimizer = base.as_in(c.optimizer)
    with c.unlocked():
        c.stages = found
    c.run = ("prepare", *ranges)
    return c


def _tokens(variant: Variant, halvings: tuple[bool, ...], *, patch: int) -> int:
    """Returns the tokens of a clip of the variant's usual size."""
    height, width = (side // (2 * patch * 2 ** sum(halvings)) for side in variant.sizes[0])
    return ((variant.frames - 1) // 4 + 1) * height * width


def _known(variant: Variant) -> dict[str, float]:
    """Returns the shares of clips of which a part is given: what the variant is made for, and nothing else."""
    nothing = dict.fromkeys(("last", "ends", "random_frames", "region", "max_level"), 0.0)
    # One that is shown frames has them beside the noise, which is everywhere.
    return nothing | ({"none": 0.7, "first": 0.3} if variant.any_known else {"none": 1.0, "first": 0.0})
