"""A base run goes on with clips beside clips: its videos then follow edges, boxes, or a smaller form of themselves.

  python -m sora_jax.main --config=configs/base.py --workdir=runs/base
  python -m sora_jax.main --config=configs/control.py --workdir=runs/control

It begins with the autoencoder and the averaged weights of the finished run in runs/base. Most of what moves goes along
curves here, or no box would lead anywhere but along the axes; the decoder, which never drew such clips, is trained on
them first, and latents stay what they are. Of a run that lies elsewhere:
  --config.stages.decoder.start_from=DIR/checkpoints/decoder
  --config.stages.control.start_from=DIR/checkpoints/videos
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config that trains the generator of the base run with controls."""
    c: Any = base.get_config()
    c.shapes.curved_share = 0.8
    c.context.kinds = ("edges", "boxes", "low")
    c.sampling.forget_context = True  # edges are followed better
    c.sampling.context_steps = 4
    with c.unlocked():
        c.run = ("decoder", "prepare", "control")
        c.stages.decoder.steps = 450
        c.stages.decoder.crops.buckets = ((5, 24, 24, 16), (9, 24, 24, 8), (5, 24, 24, 16), (13, 24, 24, 8))
        c.stages.decoder.start_from = "runs/base/checkpoints/decoder"
        control: Any = base.diffusion_stage(
            steps=2300,
            schedule=base.schedule(4e-3, warmup_steps=60, decay_share=0.8, final_share=0.02),
            images=0.2,
        )
        control.optimizer = base.as_in(c.optimizer)
        control.start_from = "runs/base/checkpoints/videos"
        control.context = ConfigDict({"none": 0.35, "edges": 0.15, "boxes": 0.45, "low": 0.05})
        # Where a part is given too, it says where things go, and boxes teach little.
        control.known.update(none=0.76, first=0.09, last=0.09, ends=0.04, random_frames=0.01, region=0.01)
        c.update(stages={"control": control})
    return c
