r"""A diffusion transformer of 30 million parameters (width 384, 12 blocks), the smallest for real videos.

Hardware: 4 or 8 chips of one host; planned for TPU v5e 2x2. Mesh: fsdp over all.
Tokens: rows of 4,096, 32 of them, 131 thousand a step; a clip of at most 2,304 (33 frames of 256x256 px), images and
videos at their own shape. 100,000 steps on images, 200,000 on videos: 3.9e10 tokens.
Autoencoder: the shape of Wan 2.1's; with its public weights none is trained here.
Expected MFU: 25 to 35 %. Widths under 1024 leave matrix units waiting; published trainers of video transformers reach
12 to 48 % (docs/sharding.md), nothing was measured on this config. Steps and rates are untried.

  python -m sora_jax.plan --config=configs/dit_s.py --topology=v5e:2x2
  python -m sora_jax.main --config=configs/dit_s.py --config.data.path=DIR --config.autoencoder.weights=WAN_VAE \
    --workdir=runs/dit_s

DIR holds tar files of captioned clips (docs/data.md); --config.data.source=folder takes a folder of files.
"""

from ml_collections import ConfigDict

from configs import autoencoder_f8t4c16, base

# Of every size. An autoencoder position is 8x8 px and 4 frames, a token 2x2 positions: 16x16 px and 4 frames.
_CHAIN = {
    "precision": "bfloat16",
    "mesh.data": 1,
    "mesh.fsdp": None,
    "run": ("autoencoder", "prepare", "images", "videos"),
    "data.source": "webdataset",
    "data.fps": 16.0,
    "data.min_tokens": 64,
    "text.width": 512,
    "text.depth": 4,
    "text.heads": 4,
    "text.max_tokens": 256,
    "transformer.patch": (1, 2, 2),
    "transformer.frequency_dim": 256,
    "transformer.rope_theta": 10_000.0,
    "transformer.time_rate": 4.0,  # frames of 16 Hz are 4 to a latent frame: one position for each, as in Wan
    "transformer.remat": "attention",
    "transformer.pooled_text": False,
    "transformer.place_features": False,
    "packing.window": 8192,
    "diffusion.caption_dropout": 0.1,
    "diffusion.noise.mean": 0.0,
    "diffusion.noise.shift_base_tokens": 256.0,
    "ema.widths": (0.05, 0.1),
    "optimizer.b2": 0.99,
    "optimizer.weight_decay": 0.01,
    "stages.prepare.batch": 8,
    "codec.chunk_frames": 16,
    "checkpoint.every_steps": 1000,
    "sampling.solver": "dpm",
    "sampling.steps": 50,
    "sampling.shift_base_tokens": 256.0,
    "sampling.fps": 16.0,
    "sampling.prompts": (
        "a white dog walks along a park road",
        "a car drives along a street in the rain",
        "waves break on a beach at sunset",
        "a person pours tea into a glass",
    ),
    "sampling.guidance.scale": 5.0,
    "sampling.guidance.interval": (0.2, 1.0),
    "log.samples_per_stage": 10,
}
# Shares of clips of which some part is given, in both stages.
_KNOWN = {"none": 0.7, "first": 0.12, "last": 0.06, "ends": 0.06, "random_frames": 0.03, "region": 0.03}
_SIZE = {
    "transformer.width": 384,
    "transformer.heads": 3,
    "transformer.depth": 12,
    "transformer.mlp_width": 1536,
    "data.max_frames": 33,
    "data.max_tokens": 2304,
    "packing.tokens": 4096,
    "packing.text_tokens": 1024,
    "packing.segments": 32,
    "packing.rows": 32,
    "sampling.size": (256, 256),
    "sampling.frames": 33,
    "optimizer.name": "muon",
}


def get_config() -> ConfigDict:
    """Returns the config."""
    c = base.get_config()
    c.update_from_flattened_dict({**_CHAIN, **_SIZE})
    of_pixels = autoencoder_f8t4c16.get_config().to_dict()
    for group in ("autoencoder", "autoencoder_loss"):
        c.update_from_flattened_dict({f"{group}.{k}": v for k, v in of_pixels[group].items() if v is not None})
    return stages(c, clips=32, images=(100_000, 1e-3), videos=(200_000, 1e-3))


def stages(c: ConfigDict, *, clips: int, images: tuple[int, float], videos: tuple[int, float]) -> ConfigDict:
    """Returns `c` with batches of `clips` for its autoencoder, and the steps and learning rates of its stages."""
    buckets = ((1, 256, 256, 4 * clips), (17, 192, 320, clips), (33, 128, 256, clips))
    changes: dict[str, object] = {"stages.autoencoder.crops.buckets": buckets}
    for name, (steps, rate) in {"autoencoder": (300_000, 1e-3), "images": images, "videos": videos}.items():
        changes |= {
            f"stages.{name}.steps": steps,
            f"stages.{name}.schedule.learning_rate": rate,
            f"stages.{name}.schedule.warmup_steps": 1000,
            f"stages.{name}.schedule.decay_share": 0.1,
            f"stages.{name}.schedule.final_share": 0.1,
        }
    for name in ("images", "videos"):
        changes |= {f"stages.{name}.known.{family}": share for family, share in _KNOWN.items()}
    c.update_from_flattened_dict(changes)
    return c
