"""The network of a frozen text encoder: its weights read from files tensor by tensor, and texts through it in batches.

Shapes: B texts of a batch, K tokens, k those of one text, E width.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from sora_jax.core.compiling import run_often
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.tree import Params, abstract_model, merge_model
from sora_jax.models.interop.weights import listed
from sora_jax.models.text.files import StoredTensor

# Texts are filled up to a power of two from here on, and batches to a power of four, so few programs are compiled.
_SHORTEST = 16
# Of a batch, which bounds the memory of attention.
MOST_TOKENS = 4096
# What our stacks of blocks are called.
_BLOCKS = "blocks."


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextWeights:
    """A network and where its parameters lie.

    Attributes:
      build: Key -> the module: int32 token_BK, length_B -> states (B, K, E).
      names: Its parameters' names, a block's without "blocks." -> the tensor's name, {} for the number of the block.
        Kernels of `Linear` lie transposed.
      tensors: Of the files, by these names.
      unused: What the names of further tensors may begin with.
      vocabulary: Pieces that the network knows.
      positions: Tokens of a text at most; None where the network sets no limit.
      width: E.
      place: The files, for messages.
    """

    build: Callable[[jax.Array], nnx.Module]
    names: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]
    unused: str
    vocabulary: int
    positions: int | None
    width: int
    place: str

    @property
    def used(self) -> dict[str, StoredTensor]:
        """The tensors that are the network's, or nobody's."""
        return {name: tensor for name, tensor in self.tensors.items() if not re.match(self.unused, name)}


class Network:
    """The weights on one device of this process: float32 on a CPU, else bfloat16."""

    def __init__(self, weights: TextWeights):
        """Reads the weights; UserError that lists tensors which are missing, of another shape or not known."""
        device = jax.local_devices()[0]
        self._on = jax.sharding.SingleDeviceSharding(device)
        self._mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=1), [device])
        dtype = np.dtype(np.float32 if device.platform == "cpu" else ml_dtypes.bfloat16)
        structure, shapes, _ = abstract_model(weights.build)
        self._params = load(weights, shapes, dtype=dtype, place=self._on)
        self._vocabulary, self._width, self._place = weights.vocabulary, weights.width, weights.place

        self._states = pass_of(structure)

    def states(self, texts: Sequence[Sequence[int]], *, positions: int | None) -> list[np.ndarray]:
        """Returns the states of each text, bfloat16 (k, E), of the numbers of its pieces.

        Texts go in batches of like lengths, the longest first, so that memory runs out at once or not at all.
        `positions` are those that the network has at most, None for no limit.
        """
        if (largest := max((max(text) for text in texts), default=0)) >= self._vocabulary:
            raise UserError(
                f"{self._place} knows {self._vocabulary} pieces and the tokenizer gives number {largest}: give the "
                "tokenizer that the weights came with"
            )
        result: dict[int, np.ndarray] = {}
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        while order:
            length = _filled(len(texts[order[0]]), base=2, least=_SHORTEST, most=positions)
            most = max(1, MOST_TOKENS // length)
            now, order = order[:most], order[most:]
            token_BK = np.zeros((_filled(len(now), base=4, least=1, most=most), length), np.int32)
            length_B = np.ones(len(token_BK), np.int32)
            for row, number in enumerate(now):
                length_B[row] = len(texts[number])
                token_BK[row, : length_B[row]] = texts[number]
            token_BK, length_B = jax.device_put((token_BK, length_B), self._on)
            with jax.set_mesh(self._mesh):  # that of training may be set
                states_BKE = np.asarray(self._states(self._params, token_BK, length_B))
            for row, number in enumerate(now):
                result[number] = states_BKE[row, : len(texts[number])].copy()
        return [result[number] for number in range(len(texts))]


def pass_of(structure: Any) -> Any:
    """Returns the jitted `(params, token_BK, length_B) -> states_BKE`, bfloat16, of a network."""

    def states(params: Params, token_BK: jax.Array, length_B: jax.Array) -> jax.Array:
        return merge_model(structure, params)(token_BK, length_B).astype(jnp.bfloat16)

    return jax.jit(states, compiler_options=run_often())


def load(weights: TextWeights, shapes: Params, *, dtype: np.dtype, place: jax.sharding.Sharding) -> Params:
    """Returns the parameters in `dtype` at `place`: on the host there is never more than one of them, cast.

    Raises UserError as `Network` says.
    """
    wanted = {name: _tensors_of(name, shape, weights.names) for name, shape in shapes.items()}
    _check(weights, shapes, wanted)
    params: Params = {}
    for name, shape in shapes.items():
        value = np.empty(shape.shape, dtype)
        stacked = value if name.startswith(_BLOCKS) else value[None]
        for number, theirs in enumerate(wanted[name]):
            tensor = weights.tensors[theirs].read()
            stacked[number] = tensor.T if name.endswith(".kernel") else tensor
        params[name] = jax.device_put(value, place)
    return params


def _tensors_of(name: str, shape: jax.Array, names: Mapping[str, str]) -> list[str]:
    """Returns the names of the tensors of one parameter: one, or one for each block."""
    if not name.startswith(_BLOCKS):
        return [names[name]]
    return [names[name.removeprefix(_BLOCKS)].format(number) for number in range(shape.shape[0])]


def _check(weights: TextWeights, shapes: Params, wanted: Mapping[str, list[str]]) -> None:
    faults = []
    for name, theirs in wanted.items():
        shape = shapes[name].shape[1:] if name.startswith(_BLOCKS) else shapes[name].shape
        shape = shape[::-1] if name.endswith(".kernel") else shape
        for one in theirs:
            if one not in weights.tensors:
                faults.append(f"{one} is missing")
            elif (found := weights.tensors[one].shape) != shape:
                faults.append(f"{one} is {found} instead of {shape}")
    known = {one for theirs in wanted.values() for one in theirs}
    faults += [f"{name} is not known" for name in weights.used.keys() - known]
    if faults:
        raise UserError(f"{weights.place} is no text encoder of this kind: {listed(sorted(faults))}")


def _filled(number: int, *, base: int, least: int, most: int | None) -> int:
    """Returns `number`, raised to `least` times a power of `base`, but not over `most`."""
    size = least
    while size < number:
        size *= base
    return size if most is None else max(number, min(size, most))
