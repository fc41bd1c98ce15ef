"""Adapters of a run: what its stages train of it where there are some, and what is added to kernels to sample with."""

import dataclasses
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
from absl import logging

from sora_jax.core.errors import UserError
from sora_jax.core.paths import expanded
from sora_jax.core.tree import Params
from sora_jax.core.typed import typed
from sora_jax.experiment.schema import Settings
from sora_jax.models.interop.lora import LoraFile, described_adapter, read_lora
from sora_jax.models.roles import VECTORS
from sora_jax.nn.lora import IN, KERNEL, OUT, LoraConfig, adapters_of, add_product, is_factor

# The name by which the adapter that a run has trained is called, in the place of a file.
OWN = "own"
_TRANSFORMER = "transformer."
# What the stages of a transformer with adapters train and keep the rest in, unless they say otherwise. Vectors of roles
# begin at zero: where clips are given beside, frozen ones would never say what these are.
_FACTORS, _FROZEN_DTYPE = r".*\.lora_[ab]", "bfloat16"


def with_adapter_stages(tree: Mapping[str, Any], kinds: Collection[str]) -> dict[str, Any]:
    """Returns a config in which stages of a transformer with adapters train these alone, unless they say what."""
    lora, stages = _group(tree, "transformer", "lora"), _group(tree, "stages")
    if lora.get("rank") is None:
        return {**tree}
    beside = rf"|{re.escape(_TRANSFORMER + VECTORS)}" if _group(tree, "context").get("kinds") else ""
    trained = {"trainable": f"{_FACTORS}{beside}", "frozen_dtype": _FROZEN_DTYPE}
    ours = {name: {**stages[name], **trained} if _asks(stages[name], kinds) else stages[name] for name in stages}
    return {**tree, "stages": ours}


def _group(tree: Any, *path: str) -> Any:
    for name in path:
        tree = tree.get(name) if hasattr(tree, "get") else None
    return {} if tree is None else tree


def _asks(stage: Any, kinds: Collection[str]) -> bool:
    return hasattr(stage, "get") and stage.get("kind") in kinds and stage.get("trainable") is None


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

    def merged(self, params: Params, lora: LoraConfig | None, *, expert: str | None = None) -> Params:
        """Returns the parameters of a run's generator with all of it in kernels and biases, and no adapters.

        Files of an `expert` ("high", "low"; None: there is one model) are those that `read` finds.

        Sums are taken in float32. What has weight 0 is read, and changes no bit. Raises UserError as `read`, and for
        another weight than 1 of `own` where the run has trained none.
        """
        lora = None if lora is None or lora.rank is None else lora
        if self.own != 1 and lora is None:
            raise UserError(f"--lora={OWN}:{self.own:g}: this run has trained no adapter; name a file")
        scale = self.own * (0.0 if lora is None else lora.scale)
        result = {name: value for name, value in params.items() if not is_factor(name)}
        for name in adapters_of(params) if scale else ():
            kernel, factors = f"{name}.{KERNEL}", (params[f"{name}.{IN}"], params[f"{name}.{OUT}"])
            result[kernel] = add_product(result[kernel], *factors, scale)
        shapes = {
            name.removeprefix(_TRANSFORMER): tuple(value.shape)
            for name, value in result.items()
            if name.startswith(_TRANSFORMER)
        }
        for added in self.read(shapes, expert=expert):
            result |= {f"{_TRANSFORMER}{n}": added.to(n, result[f"{_TRANSFORMER}{n}"]) for n in added.names}
        return result

    def facts(self) -> dict[str, Any]:
        """Returns what differs from the adapter of the run alone."""
        weights = {**({} if self.own == 1 else {OWN: self.own}), **dict(self.files)}
        return {"lora": weights} if weights else {}

    def read(self, shapes: Mapping[str, tuple[int, ...]], *, expert: str | None = None) -> list["Added"]:
        """Returns what the files add to a transformer whose parameters have these shapes; weight 0 adds nothing.

        `expert` says which of two transformers it is, "high" or "low". Raises UserError as `read_lora`.
        """
        result = []
        for path, weight in self.files:
            file = read_lora(path, shapes)
            logging.info("%s at weight %g: %s", path, weight, described_adapter(file))
            if weight and (expert is None or file.expert in (None, expert)):
                result.append(Added(file=file, weight=weight))
        return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Added:
    """One file of adapters with its weight."""

    file: LoraFile
    weight: float

    @property
    def names(self) -> set[str]:
        """Of the parameters that it changes."""
        return {*self.file.factors, *self.file.differences, *([] if self.file.roles is None else [VECTORS])}

    def to(self, name: str, value: jax.Array) -> jax.Array:
        """Returns a parameter with what is added to it; summed in float32, in the dtype of `value`."""
        if name in self.file.factors:
            value = add_product(value, *self.file.factors[name], self.weight)
        if name in self.file.differences:
            value = _add(value, self.file.differences[name], self.weight)
        if name == VECTORS and self.file.roles is not None:
            # They are whole ones, and no difference: at weight 1 the clips beside are told as they were in training.
            value = _add(value, self.file.roles - value, self.weight)
        return value


NO_ADAPTERS = Adapters()


def read_adapters(given: Mapping[Any, float] | Sequence[Any] | os.PathLike[str]) -> Adapters:
    """Returns the adapters of a mapping of files, or `own`, to weights, or of texts "FILE:WEIGHT", or one.

    Raises UserError for a weight that is no number, or no finite one, and for a name that is given twice.
    """
    weights: dict[str, float] = {}
    pairs = given.items() if isinstance(given, Mapping) else map(_pair, _texts(given))
    for key, number in pairs:
        name = expanded(typed("lora", key, str))
        weight = typed(f"--lora={name}: the weight", number, float)
        if not math.isfinite(weight):
            raise UserError(f"--lora={name}:{weight}: a weight must be finite; give one such as 0.8")
        if name in weights:
            raise UserError(f"--lora={name} is given with weights {weights[name]:g} and {weight:g}: give it once")
        weights[name] = weight
    own = weights.pop(OWN, 1.0)
    return Adapters(own=own, files=tuple(weights.items()))


def _texts(given: Any) -> tuple[str, ...]:
    one = isinstance(given, str | os.PathLike)
    return typed("lora", (given,) if one else given, tuple[str, ...])


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


@jax.jit
def _add(value: jax.Array, difference: jax.Array, weight: float) -> jax.Array:
    return (value.astype(jax.numpy.float32) + weight * difference).astype(value.dtype)
