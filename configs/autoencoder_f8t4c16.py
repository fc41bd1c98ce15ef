"""The autoencoder f8t4c16, of the shape of Wan 2.1's: 8x8 px and 4 frames to a position of 16 numbers.

Trained from nothing on a folder of videos and images in four stages: images, short clips, clips
of varied length and shape, and last an adversarial stage.

At full width, for 4 devices of 80 GB or more; steps, rates and batches of 2 to 4 million pixels are untried. The first
line compiles its steps for 4 TPU v5p chips:
  python -m sora_jax.plan --config=configs/autoencoder_f8t4c16.py --topology=v5p:2x2x1
  python -m sora_jax.main --config=configs/autoencoder_f8t4c16.py --config.data.path=DIR --workdir=runs/f8t4c16

At toy width, for two CPU cores (docs/results.md has the time). Strides and channels are the same; to learn something
there, pixels are folded into channels first and levels have the shortcuts of Wan 2.2:
  python -m sora_jax.main --config=configs/autoencoder_f8t4c16.py:toy --config.data.path=DIR --workdir=runs/toy
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base

_FULL = {
    "data.max_frames": 65,
    "data.max_tokens": 32768,
    "packing.tokens": 32768,
    "autoencoder.patch": 1,
    "autoencoder.width": 96,
    "autoencoder.multipliers": (1, 2, 4, 4),
    "autoencoder.space_down": (True, True, True),
    "autoencoder.time_down": (False, True, True),
    "autoencoder.blocks": 2,
    "autoencoder.decoder_width": 96,
    "autoencoder.decoder_blocks": 3,
    "autoencoder.channels": 16,
    "autoencoder.attention": True,
    "autoencoder.shortcuts": False,
    "autoencoder.linear_heads": False,
    "autoencoder.remat": True,
    "autoencoder_loss.squared": 0.0,
    "autoencoder_loss.absolute": 1.0,
    "autoencoder_loss.gradient": 1.0,
    "autoencoder_loss.bottleneck": 1e-5,
    "mesh.data": 1,
    "mesh.fsdp": None,
}

_TOY = {
    "data.max_frames": 17,
    "data.max_tokens": 560,
    "packing.tokens": 560,
    "autoencoder.patch": 4,
    "autoencoder.patch_kernel": 1,
    "autoencoder.width": 32,
    "autoencoder.multipliers": (1, 2, 2),
    "autoencoder.space_down": (True, False),
    "autoencoder.time_down": (True, True),
    "autoencoder.blocks": 1,
    "autoencoder.decoder_width": 32,
    "autoencoder.decoder_blocks": 1,
    "autoencoder.channels": 16,
    "autoencoder.attention": False,
    "autoencoder.shortcuts": True,
    "autoencoder.linear_heads": True,
    "autoencoder_loss.gradient": 0.02,
    "autoencoder_loss.bottleneck": 1e-5,
    "log.samples_per_stage": 2,
}

# Of each stage: steps, the peak of the learning rate, the share of the steps over which it falls, and (frames, height,
# width, clips) of the batches: equal numbers of pixels, varied lengths and shapes. A clip goes on long after its first
# frame, so most of the time belongs to the long ones.
_STAGES = {
    "full": {
        "ae_images": (100_000, 1e-3, 0.01, ((1, 256, 256, 32), (1, 384, 384, 16), (1, 256, 512, 16))),
        "ae_short": (150_000, 1e-3, 0.01, ((1, 256, 256, 32), (5, 256, 256, 8), (9, 256, 256, 4))),
        "ae_long": (
            150_000,
            1e-3,
            0.7,
            ((1, 512, 512, 16), (17, 192, 320, 4), (17, 256, 256, 4), (33, 128, 256, 4), (65, 128, 128, 4)),
        ),
        "ae_adversarial": (100_000, 1e-4, 0.5, ((1, 512, 512, 16), (17, 192, 320, 4), (33, 128, 256, 4))),
    },
    "toy": {
        "ae_images": (400, 2e-3, 0.01, ((1, 64, 64, 10),)),
        "ae_short": (800, 2e-3, 0.01, ((1, 64, 64, 10), (5, 64, 64, 2))),
        "ae_long": (8800, 2e-3, 0.6, ((1, 64, 64, 10), (5, 64, 64, 2), (17, 48, 48, 2))),
        "ae_adversarial": (30, 1e-4, 0.5, ((5, 64, 64, 2), (17, 48, 48, 2))),
    },
}


def get_config(size: str = "full") -> ConfigDict:
    """Returns the config of a run that trains the autoencoder alone, "full" or "toy"; ValueError for other words."""
    c = base.get_config()
    c.update_from_flattened_dict(base.variant({"full": _FULL, "toy": _TOY}, size))
    c.update_from_flattened_dict(
        {
            "data.source": "folder",
            "run": tuple(_STAGES[size]),
            # What `evaluate --data=shapes` draws, on the strides.
            "shapes.sides": ((64, 64), (48, 64), (64, 48)),
            "shapes.frames": (9, 17),
            "sampling.size": (64, 64),
            "sampling.frames": 9,
        }
    )
    kept: Any = c.stages
    stages = {
        name: base.autoencoder_stage(
            steps=steps,
            schedule=base.schedule(rate, warmup_steps=min(100, steps // 10), decay_share=fall, final_share=0.02),
            buckets=buckets,
            altered={"full": 0.0, "toy": 0.4}[size],
            adversarial=0.05 if name == "ae_adversarial" else 0.0,
        )
        for name, (steps, rate, fall, buckets) in _STAGES[size].items()
    }
    with c.unlocked():
        del kept.autoencoder
        c.update(stages=stages)
    return c
