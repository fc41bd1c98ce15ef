"""A refiner of the drawn world: small, slow clips become large and fast ones, in the run that also makes them of text.

  python -m sora_jax.main --config=configs/base.py --workdir=runs/base
  python -m sora_jax.main --config=configs/refine.py --workdir=runs/refine
  python -m sora_jax.evaluate --workdir=runs/refine --part=refine
  python -m sora_jax.sample --workdir=runs/refine --refine=space:2 --prompt="a red circle moves right"

Weights and autoencoder are those of the base run, which never saw clips of 48 px: one stage teaches them, and small
ones as well, of which the first pass makes one. For clips of your own take over `context` and the stage, and start from
what you have trained.
"""

from ml_collections import ConfigDict

from configs import base

_BASE = "runs/base"


def get_config() -> ConfigDict:
    """Returns the config of the refiner of the drawn world."""
    c = base.get_config()
    refine = base.diffusion_stage(
        steps=1500, schedule=base.schedule(5e-3, warmup_steps=60, decay_share=0.6, final_share=0.02), images=0.1
    )
    refine.optimizer = base.optimizer()
    # The other clips are made of text alone, so that one run makes the small clip and the large one.
    refine.context = ConfigDict({"none": 0.3, "low": 0.7})
    with c.unlocked():
        c.run = ("prepare", "refine")
        c.update(stages={"refine": refine})
    c.update_from_flattened_dict(
        {
            "autoencoder.start_from": _BASE,
            "stages.refine.start_from": f"{_BASE}/checkpoints/videos",
            "context.kinds": ("low",),
            # In pairs (space, time): (2, 1) and (1, 4) are what passes ask for, the others cost little and teach both.
            "context.low.time": (1, 4),
            "context.low.max_level": 0.2,
            "stages.refine.known.none": 0.8,
            "stages.refine.known.first": 0.1,
            "stages.refine.known.last": 0.04,
            "stages.refine.known.ends": 0.02,
            "stages.refine.known.random_frames": 0.02,
            "stages.refine.known.region": 0.02,
            "data.max_tokens": 144,
            "shapes.num_clips": 2048,
            "shapes.sides": ((24, 24), (48, 48), (48, 48)),
            "shapes.image_share": 0.2,
            "packing.tokens": 288,
            "packing.rows": 4,
            "sampling.size": (48, 48),
            "sampling.refiner.level": 0.05,
            "sampling.refiner.steps": 4,
            # Frames larger than those of training are made in tiles of their size: at once things repeat in them.
            "sampling.refiner.tile": 48,
            "evaluation.tasks": 0,
        }
    )
    return c
