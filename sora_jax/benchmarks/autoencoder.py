"""Speed and memory of the video autoencoder, against a peer's implementation and against itself at other lengths.

  python -m sora_jax.benchmarks.autoencoder --json=autoencoder.json

Speed needs the peer (`pip install -e ".[parity]"`). What a train step needs of a TPU is planned by `sora_jax.plan`.

Letters: B clips, T H W frames, rows, columns, C channels.
"""

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.benchmarks.peers import WanPeer
from sora_jax.core import rng
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.core.host_memory import use_huge_pages
from sora_jax.core.rng import Rngs
from sora_jax.core.tree import init_params
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sora_jax.models.codec import Codec, CodecConfig
from sora_jax.models.interop.wan_autoencoder import config_of, load_wan_autoencoder
from sora_jax.train.clock import peak_memory_gb

_PARTS = ("all", "speed", "memory")
_PUBLIC_WIDTH = 96
_FLAGS = Flags()
_JSON = _FLAGS.figures()
_ONLY = _FLAGS.choice("only", "all", _PARTS, "What to measure.")
_WIDTHS = _FLAGS.integers(
    "peer_width", [_PUBLIC_WIDTH, 32], "Widths of f8t4c16 whose speed is compared; 96 is the public one.", least=1
)
_FRAMES = _FLAGS.integer(
    "clip_frames", 9, "Frames of the clip whose speed is compared, 1 plus a multiple of 4.", least=1
)
_SIDE = _FLAGS.integer("clip_side", 128, "Px, its height and width.", least=16)
_CHILD = _FLAGS.integer("memory_of", None, "Frames; used by this program to measure itself.")

# Clips of these lengths are streamed, at this width and side; the first is what the others are compared with.
_LENGTHS, _MEMORY_WIDTH, _MEMORY_SIDE = (17, 65, 257, 1025), 16, 256
_ROUNDS = 3


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    if _CHILD.value is not None:
        print(stream_and_weigh(_CHILD.value))
        return
    figures: list[Figure] = []
    if _ONLY.value in ("all", "speed"):
        for width in _WIDTHS.value:
            figures += speed_figures(width, frames=_FRAMES.value, side=_SIDE.value)
    if _ONLY.value in ("all", "memory"):
        figures += memory_figures(_LENGTHS)
    publish(figures, _JSON.value)


def public_shape(width: int) -> AutoencoderConfig:
    """Returns the shape of Wan 2.1's autoencoder, f8t4c16, at another width than its 96."""
    return AutoencoderConfig(
        patch=1,
        width=width,
        multipliers=(1, 2, 4, 4),
        space_down=(True, True, True),
        time_down=(False, True, True),
        blocks=2,
        decoder_width=width,
        decoder_blocks=3,
        channels=16,
        attention=True,
        shortcuts=False,
        patch_kernel=3,
        linear_heads=False,
        bottleneck="kl",
        codes=None,
        remat=False,
    )


def speed_figures(width: int, *, frames: int, side: int) -> list[Figure]:
    """Returns how fast f8t4c16 of a width encodes and decodes, against diffusers in torch with the same weights.

    Both in float32 on the CPUs of this machine, in turns, in chunks of one latent frame; the best of some rounds.
    """
    clip_THWC = rng.generator(0, "clip").integers(0, 256, size=(frames, side, side, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        peer = WanPeer(width, folder)
        config = config_of(folder)
        unit = np.ones(config.channels)
        params = jax.device_put(load_wan_autoencoder(folder, config))
    codec = Codec(config, params, mean_C=0 * unit, scale_C=unit, work=CodecConfig(chunk_frames=4, tile=None))
    latent_BTHWC = codec.encode(clip_THWC[None])
    difference = float(np.abs(latent_BTHWC[0] - peer.encode(clip_THWC)).max())
    ours, theirs = functools.partial(codec.encode, clip_THWC[None]), functools.partial(peer.encode, clip_THWC)
    encode = in_turns(ours, theirs)
    decode = in_turns(
        functools.partial(codec.decode, latent_BTHWC), functools.partial(peer.decode, np.asarray(latent_BTHWC[0]))
    )
    end = "" if width == _PUBLIC_WIDTH else f"_{width}"
    what = f"of {frames} frames of {side}x{side} px at width {width}, CPU, float32"
    return [
        Figure(name=f"encode_seconds{end}", value=encode[0], target=None, meaning=f"encoding {what}"),
        Figure(
            name=f"encode_ratio{end}",
            value=encode[1] / encode[0],
            target="at least 1",
            meaning="how many times as fast as diffusers, same weights, same machine",
        ),
        Figure(name=f"decode_seconds{end}", value=decode[0], target=None, meaning=f"decoding {what}"),
        Figure(
            name=f"decode_ratio{end}",
            value=decode[1] / decode[0],
            target="at least 1",
            meaning="how many times as fast as diffusers, same weights, same machine",
        ),
        Figure(
            name=f"difference{end}",
            value=difference,
            target="at most 1e-4",
            meaning="largest difference of the two latents",
        ),
    ]


def in_turns(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Returns the fewest seconds of each over some rounds, after a round that compiles."""
    seconds = []
    for _ in range(_ROUNDS + 1):
        times = []
        for call in (first, second):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        seconds.append(times)
    best = np.min(seconds[1:], axis=0)
    return float(best[0]), float(best[1])


def memory_figures(lengths: Sequence[int]) -> list[Figure]:
    """Returns the peak memory of a process that encodes and decodes a clip of each length, chunk by chunk."""
    peaks = {}
    for frames in lengths:
        command = [sys.executable, "-m", "sora_jax.benchmarks.autoencoder", f"--memory_of={frames}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"measuring {frames} frames failed: {done.stderr.strip().splitlines()[-1:]}")
        peaks[frames] = float(done.stdout.split()[-1])
    side, shortest = _MEMORY_SIDE, lengths[0]
    figures = [
        Figure(
            name=f"memory_gb_{frames}",
            value=peak,
            target=None,
            meaning=f"peak of a process that streams {frames} frames of {side}x{side} px at width {_MEMORY_WIDTH}",
        )
        for frames, peak in peaks.items()
    ]
    return figures + [
        Figure(
            name=f"memory_ratio_{frames}",
            value=peaks[frames] / peaks[shortest],
            target="at most 1.2",
            meaning=f"against {shortest} frames",
        )
        for frames in lengths[1:]
    ]


def stream_and_weigh(frames: int) -> float:
    """Returns the peak memory of this process in GB after a clip went through both halves, one chunk at a time."""
    config = public_shape(_MEMORY_WIDTH)
    build = functools.partial(build_codec_model, config)
    unit = np.ones(config.channels)
    params = jax.jit(functools.partial(init_params, build))(rng.key(0, "benchmark"))
    codec = Codec(config, params, mean_C=0 * unit, scale_C=unit, work=CodecConfig(chunk_frames=4, tile=None))
    noise = rng.generator(0, "clip").integers(0, 256, size=(1, 1, _MEMORY_SIDE, _MEMORY_SIDE, 3), dtype=np.uint8)
    made = sum(piece.shape[1] for piece in codec.decode_stream(codec.encode_stream(noise for _ in range(frames))))
    assert made == frames, (made, frames)
    return peak_memory_gb()


def build_codec_model(config: AutoencoderConfig, key: jax.Array) -> Autoencoder:
    """Returns an autoencoder of random weights."""
    return Autoencoder(config, rngs=Rngs(key))


if __name__ == "__main__":
    use_huge_pages()
    run_command(main, _FLAGS)
