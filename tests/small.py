"""The smallest generator that has every part, and a small autoencoder, for tests that need one."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.rng import Rngs
from sora_jax.data.sources.shapes_world import WorldConfig
from sora_jax.diffusion.guidance import GuidanceConfig
from sora_jax.diffusion.known import KnownConfig
from sora_jax.diffusion.noise_levels import NoiseConfig
from sora_jax.diffusion.path import PathConfig
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.text.bytes import ByteText
from sora_jax.models.text.encoder import TextConfig
from sora_jax.models.text_to_video import TextToVideo
from sora_jax.models.transformer_config import TransformerConfig

AUTOENCODER = AutoencoderConfig(
    patch=4,
    width=4,
    multipliers=(1, 1, 1),
    space_down=(False, False),
    time_down=(True, True),
    blocks=1,
    decoder_width=4,
    decoder_blocks=1,
    channels=4,
    attention=False,
    shortcuts=True,
    patch_kernel=3,
    linear_heads=True,
    bottleneck="kl",
    codes=None,
    remat=False,
)
TRANSFORMER = TransformerConfig(
    patch=(1, 1, 1),
    width=16,
    base_width=None,
    depth=2,
    heads=2,
    mlp_width=16,
    frequency_dim=8,
    rope_theta=100.0,
    time_rate=2.0,
    attention="auto",
    exchange="gather",
    remat="none",
    pooled_text=True,
    place_features=True,
    text_pad_to=None,
    given_channels=None,
    image_dim=None,
    image_positions=None,
    lora=None,
)


_GUIDANCE = GuidanceConfig(scale=4.0, interval=(0.0, 1.0), rescale=0.0)
_KNOWN = KnownConfig(none=0.6, first=0.15, last=0.05, ends=0.05, random_frames=0.05, region=0.1, max_level=0.05)
_NOISE = NoiseConfig(
    mean=0.0,
    std=1.0,
    shift_base_tokens=None,
    shift_power=0.5,
    shift_limits=(0.25, 16.0),
    uniform_share=0.1,
    uniform_shift=None,
)
_PATH = PathConfig(prediction="clean", loss_space="velocity", weighting="flat", min_sigma=0.05)


def guidance_config(**changes: Any) -> GuidanceConfig:
    """Returns a guidance with `changes`; so the next ones."""
    return dataclasses.replace(_GUIDANCE, **changes)


def known_config(**changes: Any) -> KnownConfig:
    return dataclasses.replace(_KNOWN, **changes)


def noise_config(**changes: Any) -> NoiseConfig:
    return dataclasses.replace(_NOISE, **changes)


def path_config(**changes: Any) -> PathConfig:
    return dataclasses.replace(_PATH, **changes)


def world_config(**values: Any) -> WorldConfig:
    """Returns a world of one object in the training split, where `values` do not say otherwise."""
    return WorldConfig(**{"max_objects": 1, "occluder": False, "split": "train"} | values)


def generator(
    patch_width: int, *, roles: bool = False, blind: bool = False, **changes: Any
) -> Callable[[Any], TextToVideo]:
    """Returns a function from a key to a generator of tokens with `patch_width` numbers; `changes` of `TRANSFORMER`.

    `roles` says whether clips may be given beside the one that it makes, `blind` whether these see themselves alone.
    """
    transformer = dataclasses.replace(TRANSFORMER, **changes)

    def build(key: Any) -> TextToVideo:
        text = ByteText(TextConfig(encoder="bytes", weights=None, width=16, depth=1, heads=2, max_tokens=24))
        return TextToVideo(transformer, text, patch_width=patch_width, rngs=Rngs(key), roles=roles, blind=blind)

    return build


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """Shows the first of the eight devices alone: what is not asked on a mesh is compiled sooner for it."""
    first = jax.local_devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        for name, seen in (("devices", first), ("local_devices", first), ("device_count", 1)):
            patch.setattr(jax, name, lambda *_, seen=seen, **__: seen)
        yield


def random_params(shapes: dict[str, Any], seed: int = 0) -> dict[str, jax.Array]:
    """Returns parameters of which none is special, each kernel keeping the scale of what goes through."""
    rng, params = np.random.default_rng(seed), {}
    for name, leaf in shapes.items():
        value = rng.normal(size=leaf.shape)
        if name.endswith("kernel"):
            value *= 1.5 * (leaf.shape[-1] / leaf.size) ** 0.5
        elif name.endswith("scale"):
            value = 1 + 0.3 * value
        elif name.endswith("bias"):
            value *= 0.3
        params[name] = jnp.asarray(value.astype(np.float32))  # jnp.asarray(value, float32) compiles for each shape
    return params


def conv_weights(shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns random weights of a network of convolutions and batch norms through which signals keep their size."""
    rng, weights = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        value = rng.normal(size=shape)
        if name.endswith(("conv.weight", "conv3d.weight")):
            value *= (2 / np.prod(shape[1:])) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            value = rng.uniform(0.8, 1.2, size=shape)
        else:
            value *= 0.1
        weights[name] = value.astype(np.float32)
    return weights
