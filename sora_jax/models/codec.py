"""A trained autoencoder as everybody after its training sees it: uint8 clips to latents and back.

Clips go through in chunks of frames, each of which carries on from the one before, and large frames in tiles: so memory
depends on neither duration nor, but for a few layers, on the size of a frame, and the numbers are those of the whole.

Shapes: B clips, T H W frames, rows, columns of pixels or latents, C channels.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sora_jax.core.compiling import run_often
from sora_jax.core.distributed import to_host, together
from sora_jax.core.errors import UserError
from sora_jax.core.rng import Rngs
from sora_jax.core.sharding import put_whole
from sora_jax.core.tree import Params, abstract_model, merge_model
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sora_jax.models.tiles import decoder_halo, encoder_halo, run_tiled
from sora_jax.nn.conv import Kept, Past
from sora_jax.video import latents, shapes
from sora_jax.video.pixels import to_float, to_pixels

# (parameters, what the last chunk left or None, chunk) -> (result, what this one leaves)
CodecProgram = Callable[[Params, Kept | None, Any], tuple[Any, Kept]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """How much of a clip is encoded or decoded at once; it changes memory and speed, and no number.

    Attributes:
      chunk_frames: Frames of a chunk, a multiple of the temporal stride.
      tile: Side of the tiles that larger frames are cut into, px, a multiple of the spatial stride; None: whole frames.
    """

    chunk_frames: int
    tile: int | None

    def check(self, config: AutoencoderConfig) -> None:
        """Raises UserError where the strides do not divide the sizes."""
        for name, value, stride in (
            ("chunk_frames", self.chunk_frames, config.time_stride),
            ("tile", self.tile, config.space_stride),
        ):
            if value is not None and (value < 1 or value % stride):
                raise UserError(f"codec.{name} {value} is not a multiple of the autoencoder's stride {stride}")


WHOLE_FRAMES = CodecConfig(chunk_frames=8, tile=None)


class Codec:
    """Frozen weights of an autoencoder with the per-channel statistics of its latents.

    Args:
      config: Shape of the autoencoder.
      params: Its parameters by name.
      mean_C: Mean of each latent channel over the training clips.
      scale_C: What each latent channel is divided by (`video.latents.LatentStatistics.scale_C`).
      work: How much is done at once.
      mesh: Devices that share the work, each with all parameters; clips of a batch are split, and rows and columns of
        frames along `sequence` and `tensor`. None: where the parameters lie.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        params: Params,
        *,
        mean_C: np.ndarray,
        scale_C: np.ndarray,
        work: CodecConfig = WHOLE_FRAMES,
        mesh: Mesh | None = None,
    ):
        work.check(config)
        self.config = config
        self.params = params if mesh is None else {name: put_whole(value, mesh) for name, value in params.items()}
        self.mean_C = np.asarray(mean_C, np.float64)
        self.scale_C = np.asarray(scale_C, np.float64)
        self._work = work
        self._mesh = mesh
        self._programs = programs_of(config)
        if mesh is not None and mesh.is_multi_process:
            self._programs = self._programs.together()

    @property
    def stride(self) -> shapes.Size:
        """Frames, rows and columns of pixels of one latent position."""
        return self.config.time_stride, self.config.space_stride, self.config.space_stride

    def encode(self, pixels_BTHWC: np.ndarray) -> np.ndarray:
        """Returns raw latents, float32 (B, t, h, w, C), of uint8 clips of one legal size."""
        shapes.latent_grid(pixels_BTHWC.shape[1:4], self.stride)
        return np.concatenate(list(self.encode_stream([pixels_BTHWC])), axis=1)

    def encode_stream(self, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the raw latents of clips that arrive in pieces (B, n, H, W, 3), any n, as soon as they are known.

        Raises UserError at the end where the number of frames is not legal.
        """
        for (latent, _), frames in self._encode_chunks(pieces):
            yield to_host(latent)[:, :frames]

    def statistics(self, pixels_THWC: np.ndarray) -> latents.LatentStatistics:
        """Returns the statistics of the raw latents of one uint8 clip of a legal size."""
        parts = [
            [to_host(one)[:, :frames] for one in chunk] for chunk, frames in self._encode_chunks([pixels_THWC[None]])
        ]
        return latents.LatentStatistics.of(*(np.concatenate(one, axis=1) for one in zip(*parts, strict=True)))

    def _encode_chunks(self, pieces: Iterable[np.ndarray]) -> Iterator[tuple[tuple[jax.Array, jax.Array], int]]:
        """Yields (raw latents, variances of the bottleneck's noise) of each chunk, and how many of its frames count."""
        step, kept, done = self._work.chunk_frames, None, 0
        for chunk in _regroup(pieces, step):
            frames = chunk.shape[1]
            done += frames
            shapes.latent_grid((done, *chunk.shape[2:4]), self.stride)
            # The encoder is causal: repeating the last frame changes no number that is kept.
            encoded, kept = self._encode_chunk(kept, _lengthened(chunk, step) if done > 1 else chunk)
            yield encoded, -(-frames // self.stride[0])

    def decode(self, latent_BTHWC: np.ndarray) -> np.ndarray:
        """Returns uint8 clips (B, T, H, W, 3) of normalised latents."""
        return np.concatenate(list(self.decode_stream([latent_BTHWC])), axis=1)

    def decode_stream(self, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the uint8 frames of normalised latents that arrive in pieces (B, n, h, w, C), any n."""
        step, kept = self._work.chunk_frames // self.stride[0], None
        for chunk in _regroup(pieces, step):
            frames = chunk.shape[1] if kept is None else chunk.shape[1] * self.stride[0]
            latent = latents.denormalise(chunk, self.mean_C, self.scale_C)
            clip, kept = self._decode_chunk(kept, latent if kept is None else _lengthened(latent, step))
            yield to_host(clip)[:, :frames]

    def reconstruct(self, pixels_BTHWC: np.ndarray) -> np.ndarray:
        """Returns uint8 clips after encoding and decoding."""
        return self.decode(latents.normalise(self.encode(pixels_BTHWC), self.mean_C, self.scale_C))

    def fingerprint(self) -> str:
        """Returns a sha256 in hex of the weights and the statistics."""
        digest = hashlib.sha256()
        for name in sorted(self.params):
            digest.update(name.encode())
            digest.update(to_host(self.params[name]).tobytes())
        digest.update(self.mean_C.tobytes() + self.scale_C.tobytes())
        return digest.hexdigest()

    def _encode_chunk(self, kept: Any, pixels_BTHWC: np.ndarray) -> tuple[Any, Any]:
        if self._fits(pixels_BTHWC, self.config.space_stride):
            return self._run(self._programs.encode, kept, pixels_BTHWC)
        of_tiles, of_whole = (None, None) if kept is None else kept
        halo = encoder_halo(self.config)
        features, of_tiles = self._tiled(self._programs.down, of_tiles, pixels_BTHWC, halo, self.config.space_stride, 1)
        encoded, of_whole = self._run(self._programs.finish, of_whole, features)
        return encoded, (of_tiles, of_whole)

    def _decode_chunk(self, kept: Any, latent_BTHWC: np.ndarray) -> tuple[Any, Any]:
        if self._fits(latent_BTHWC, 1):
            return self._run(self._programs.decode, kept, latent_BTHWC)
        of_tiles, of_whole = (None, None) if kept is None else kept
        halo = decoder_halo(self.config)
        features, of_whole = self._run(self._programs.begin, of_whole, latent_BTHWC)
        clip, of_tiles = self._tiled(self._programs.up, of_tiles, to_host(features), halo, 1, self.config.space_stride)
        return clip, (of_tiles, of_whole)

    def _fits(self, x_BTHWC: np.ndarray, scale: int) -> bool:
        """Whether frames of `scale` rows and columns to a position of the latent go through in one piece."""
        tile = self._work.tile
        return tile is None or max(x_BTHWC.shape[2:4]) // scale <= tile // self.config.space_stride

    def _tiled(
        self, program: CodecProgram, kept: Any, x_BTHWC: np.ndarray, halo: int, scale_in: int, scale_out: int
    ) -> tuple[np.ndarray, Any]:
        assert self._work.tile is not None
        return run_tiled(
            functools.partial(self._run, program),
            kept,
            x_BTHWC,
            tile=self._work.tile // self.config.space_stride,
            halo=halo,
            scale_in=scale_in,
            scale_out=scale_out,
        )

    def _run(self, program: CodecProgram, kept: Any, x_BTHWC: Any) -> tuple[Any, Any]:
        if self._mesh is None:
            return program(self.params, kept, x_BTHWC)
        with jax.set_mesh(self._mesh):
            return program(self.params, kept, put_whole(x_BTHWC, self._mesh))


@dataclasses.dataclass(frozen=True)
class Programs:
    """The two halves of an autoencoder, jitted, whole and in the parts that `models/tiles.py` speaks of.

    What encodes returns latents and the variances of the bottleneck's noise in them.
    """

    encode: CodecProgram
    down: CodecProgram
    finish: CodecProgram
    decode: CodecProgram
    begin: CodecProgram
    up: CodecProgram

    def together(self) -> "Programs":
        """Returns the same for all processes: each is run once all have come to it."""
        return Programs(**{name: together(program, every_time=True) for name, program in vars(self).items()})


@functools.cache
def programs_of(config: AutoencoderConfig) -> Programs:
    """Returns the programs of one shape, for all weights."""
    structure, _, _ = abstract_model(lambda key: Autoencoder(config, rngs=Rngs(key)))

    def program(apply: Callable[[Autoencoder, jax.Array, Past], Any]) -> CodecProgram:
        def run(params: Params, kept: Kept | None, x: jax.Array) -> tuple[Any, Kept]:
            past = Past(kept)
            return apply(merge_model(structure, params), x, past), past.after

        return jax.jit(run, donate_argnums=1, compiler_options=run_often())

    def down(model: Autoencoder, pixels: jax.Array, past: Past) -> jax.Array:
        return model.encoder.down(to_float(pixels), past)

    def finish(model: Autoencoder, features: jax.Array, past: Past) -> tuple[jax.Array, jax.Array]:
        moments = model.encoder.finish(features, past)
        return model.bottleneck.mode(moments), model.bottleneck.noise(moments)

    def begin(model: Autoencoder, latent: jax.Array, past: Past) -> jax.Array:
        return model.decoder.begin(latent, past)

    def up(model: Autoencoder, features: jax.Array, past: Past) -> jax.Array:
        return to_pixels(model.decoder.up(features, past))

    return Programs(
        encode=program(lambda model, pixels, past: finish(model, down(model, pixels, past), past)),
        down=program(down),
        finish=program(finish),
        decode=program(lambda model, latent, past: up(model, begin(model, latent, past), past)),
        begin=program(begin),
        up=program(up),
    )


def _regroup(pieces: Iterable[np.ndarray], step: int) -> Iterator[np.ndarray]:
    """Yields the first frame of (B, n, H, W, C) pieces, then `step` frames at a time, then what is left."""
    held: list[np.ndarray] = []
    size = 1
    for piece in pieces:
        while piece.shape[1]:
            room = size - sum(part.shape[1] for part in held)
            held.append(piece[:, :room])
            piece = piece[:, room:]
            if sum(part.shape[1] for part in held) == size:
                yield np.concatenate(held, axis=1)
                held, size = [], step
    if held:
        yield np.concatenate(held, axis=1)


def _lengthened(x_BTHWC: np.ndarray, frames: int) -> np.ndarray:
    """Returns the array with its last frame repeated up to `frames`."""
    surplus = frames - x_BTHWC.shape[1]
    return np.concatenate([x_BTHWC, np.repeat(x_BTHWC[:, -1:], surplus, axis=1)], axis=1)


def measure_latents(codec: Codec, clips: Sequence[np.ndarray]) -> latents.LatentStatistics:
    """Returns the statistics of the raw latents of uint8 clips (T, H, W, 3), each of a legal size."""
    return functools.reduce(latents.LatentStatistics.merge, map(codec.statistics, clips))
