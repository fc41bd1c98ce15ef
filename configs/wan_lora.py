r"""A LoRA adapter of a public Wan model, trained on your clips: the model itself stays as it is, in bfloat16.

  python -m sora_jax.plan --config=configs/wan_lora.py:t2v_14b --topology=v6e:2x4
  python -m sora_jax.main --config=configs/wan_lora.py:t2v_14b --config.model=DIR --config.data.path=CLIPS \
    --workdir=runs/mine

Variants, DIR, CLIPS and the law of noise levels are those of `configs/wan_finetune.py`. One to three thousand steps are
usual; videos of an image want about twice those of text. The adapter of rank 32 is 1.1 % (14B) to 3.1 % (1.3B) of the
parameters. Of two experts (A14B) each has an adapter of its own, trained in its own range of noise.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import wan_finetune

_STEPS, _RATE = 2000, 1e-4
# Of a batch: as many chips hold it, one row to a chip.
_ROWS = {"t2v_1_3b": 4, "ti2v_5b": 4}


def get_config(variant: str = "t2v_1_3b") -> ConfigDict:
    """Returns the config that trains an adapter of `variant`, a key of `VARIANTS`."""
    c: Any = wan_finetune.of_variant(variant)
    c.packing.rows = _ROWS.get(variant, 8)
    c.transformer.lora.rank = 32
    return wan_finetune.stages(c, variant, steps=_STEPS, rate=_RATE)
