"""Our adapters into the form of a LoRA file that diffusers, ComfyUI, LightX2V and, converted, musubi read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from sora_jax.models.interop.lora import ROLES_KEY
from sora_jax.models.interop.lora_names import module_of
from sora_jax.models.interop.wan_names import Layout
from sora_jax.models.interop.writing import Tensor, write_weights

# Whose names the keys have: those of Wan's own code, which most read, or those of diffusers, which it alone does.
_PREFIX: dict[Layout, str] = {"original": "diffusion_model.", "diffusers": "transformer."}
LoraDtype = Literal["bfloat16", "float32"]


def save_lora(
    path: str | Path,
    factors: Mapping[str, tuple[Any, Any]],
    *,
    scale: float,
    facts: Mapping[str, str],
    dtype: LoraDtype = "bfloat16",
    layout: Layout = "original",
    roles: Any = None,
) -> Path:
    """Writes adapters with their scale in the second factor, so that alpha is the rank, and returns the file.

    Raises UserError where the file is there already, StorageError where it cannot be written.

    Args:
      path: Of the file; ends in .safetensors.
      factors: By the name of a kernel of our `Transformer` (layers, in, r) and (layers, r, out), or without layers.
      scale: Of their products.
      facts: What the head of the file says besides rank and alpha.
      dtype: Of the file.
      layout: Whose names it has.
      roles: Vectors of the roles of clips beside, written under a name of our own; None: there are none.
    """
    kind = np.dtype(jnp.dtype(dtype))
    tensors: dict[str, Tensor] = {}
    ranks = set()
    for ours, (first, second) in factors.items():
        ranks.add(first.shape[-1])
        module = _PREFIX[layout] + module_of(ours, layout)
        for letter, value, times in (("A", first, 1.0), ("B", second, scale)):
            layers = np.asarray(value, np.float32) * np.float32(times)
            for layer, one in enumerate(layers if "{}" in module else layers[None]):
                array = np.ascontiguousarray(one.T).astype(kind)
                tensors[f"{module.format(layer)}.lora_{letter}.weight"] = Tensor(array.view, array.shape, kind)
    if roles is not None:
        vectors = np.asarray(roles, np.float32).astype(kind)
        tensors[ROLES_KEY] = Tensor(vectors.view, vectors.shape, kind)
    rank = str(max(ranks))
    files = write_weights(Path(path), tensors, shard_bytes=None, metadata={"rank": rank, "alpha": rank, **facts})
    return files[0]
