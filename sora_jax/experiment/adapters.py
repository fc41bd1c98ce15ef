"""Adapters of a run: what its stages train of it where there are some, and what is added to kernels to sample with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sora_jax.core.errors import UserError
from sora_jax.core.tree import Params
from sora_jax.experiment.schema import Settings
from sora_jax.models.interop.lora import LoraFile, read_lora
from sora_jax.nn.lora import IN, KERNEL, OUT, adapters_of, add_product, is_factor

# The name by which the adapter that a run has trained is called, in the place of a file.
OWN = "own"
_TRANSFORMER = "transformer."
# What the stages of a transformer with adapters train and keep the rest in, unless they say otherwise.
_STAGE = {"trainable": r".*\.lora_[ab]", "frozen_dtype": "bfloat16"}


def with_adapter_stages(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config in which stages of a transformer with adapters train these alone, unless they say what."""
    lora, stages = _group(tree, "transformer", "lora"), _group(tree, "stages")
    if lora.get("rank") is None:
        return {**tree}
    ours = {name: {**stages[name], **_STAGE} if _asks(stages[name]) else stages[name] for name in stages}
    return {**tree, "stages": ours}


def _group(tree: Any, *path: str) -> Any:
    for name in path:
        tree = tree.get(name) if hasattr(tree, "get") else None
    return {} if tree is None else tree


def _asks(stage: Any) -> bool:
    return hasattr(stage, "get") and stage.get("kind") == "diffusion" and stage.get("trainable") is None


def without_adapters(settings: Settings) -> Settings:
    """Returns the settings of the same run without adapters: of its model once they are merged."""
    return dataclasses.replace(settings, transformer=dataclasses.replace(settings.transformer, lora=None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
    """What is added to the kernels of a transformer.

    Attributes:
      own: Weight of the adapter that the run has trained; at 0 the transformer is as it was before.
      files: (file, weight) of others.
    """

    own: float = 1.0
    files: tuple[tuple[str, float], ...] = ()

    def merged(self, params: Params, *, scale: float, expert: str | None = None) -> Params:
        """Returns the generator's parameters with all of it in the kernels and biases, and no adapters.

        Sums are taken in float32. What has weight 0 is read, and changes no bit. Raises UserError as `read_lora`, and
        for `own` of a run that has trained none.

        Args:
          params: Of the generator, with its own adapters or without.
          scale: Of its own adapters.
          expert: Which of two transformers it is, "high" or "low"; None: there is one.
        """
        result = {name: value for name, value in params.items() if not is_factor(name)}
        for name in adapters_of(params) if self.own else ():
            kernel, factors = f"{name}.{KERNEL}", (params[f"{name}.{IN}"], params[f"{name}.{OUT}"])
            result[kernel] = add_product(result[kernel], *factors, self.own * scale)
        shapes = {name.removeprefix(_TRANSFORMER): tuple(result[name].shape) for name in result if _of_it(name)}
        for path, weight in self.files:
            file = read_lora(path, shapes)
            if weight and file.expert in (None, expert):
                result |= _with_file(result, file, weight)
        return result


def read_adapters(given: Mapping[Any, float] | Sequence[str]) -> Adapters:
    """Returns the adapters of a mapping of files, or `own`, to weights, or of texts "FILE:WEIGHT".

    Raises UserError for a weight that is no number.
    """
    pairs = given.items() if isinstance(given, Mapping) else map(_pair, given)
    weights = {str(name): weight for name, weight in pairs}
    own = weights.pop(OWN, 1.0)
    return Adapters(own=own, files=tuple(weights.items()))


def _pair(text: str) -> tuple[str, float]:
    """Returns (file, weight) of "FILE:WEIGHT", or of "FILE", whose weight is 1."""
    name, colon, number = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return name, float(number)
    except ValueError as error:
        raise UserError(
            f"--lora={text}: {number!r} is no weight; give FILE:WEIGHT, such as mine.safetensors:0.8"
        ) from error


def _of_it(name: str) -> bool:
    return name.startswith(_TRANSFORMER)


def _with_file(params: Params, file: LoraFile, weight: float) -> Params:
    """Returns the parameters that a file changes."""
    changed: Params = {}
    for name, (first, last) in file.factors.items():
        ours = f"{_TRANSFORMER}{name}"
        changed[ours] = add_product(params[ours], first, last, weight)
    for name, difference in file.differences.items():
        ours = f"{_TRANSFORMER}{name}"
        changed[ours] = _add(changed.get(ours, params[ours]), difference, weight)
    return changed


@jax.jit
def _add(value: jax.Array, difference: jax.Array, weight: float) -> jax.Array:
    return (value.astype(jax.numpy.float32) + weight * difference).astype(value.dtype)
