"""How fast a captioner captions clips anew, and what keeping keys saves it.

  python -m sora_jax.benchmarks.captioning --workdir=runs/captions --json=FILE
  python -m sora_jax.benchmarks.captioning --json=FILE

From prepared latents of a run to text, batch after batch, as the run's config says captions are written. Without a run
weights and latents are random, and the captions of no end: as long as captions may be. Against it
stands decoding without a memory, which puts the whole caption so far through the text decoder for each token; what it
keeps are the clips' keys, and the bytes within a token. Both take the same clips in turn, and write the same.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.core import rng
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.config_files import load_config
from sora_jax.core.tree import Params, init_params
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.tokens import BYTES_PER_TOKEN
from sora_jax.experiment.captioners import build_captioner, load_captioner, make_describer
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.settings import read_settings
from sora_jax.generate.captioning import Describer, EncodedClip, LatentClip, PackWriter
from sora_jax.generate.decoding import WriterMemory
from sora_jax.models.caption_blocks import Keys, TextHalfBlock
from sora_jax.models.caption_tokens import CaptionTexts
from sora_jax.nn.stack import map_blocks
from sora_jax.train.workdir import Workdir
from sora_jax.video.shapes import latent_grid

_FLAGS = Flags()
_WORKDIR = _FLAGS.path("workdir", None, "The folder of a run that trained a captioner; default: random weights.")
_CONFIG = _FLAGS.string("config", "configs/captions.py", "Of the captioner with random weights.")
_JSON = _FLAGS.figures()
_CLIPS = _FLAGS.integer("clips", 512, "How many clips are captioned.", least=1)
_ROUNDS = _FLAGS.integer("rounds", 3, "How often each way goes over them; the median counts.", least=1)
_CLOCK = _FLAGS.choice("clock", "wall", ["wall", "process"], "process: seconds of all cores, where others compute too.")
_CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


class RereadingWriter(PackWriter):
    """Writes what `PackWriter` writes, and keeps no keys of captions: each token is written from all before it."""

    def begin(self, count: int, length: int) -> WriterMemory:
        """Returns the tokens of captions, none so far: int32 (N, K, Q)."""
        return jnp.zeros((count, length, BYTES_PER_TOKEN), jnp.int32)

    def read(self, memory: WriterMemory, token_NQ: jax.Array, place: jax.Array) -> tuple[jax.Array, WriterMemory]:
        """Takes the token at `place` of each caption; returns what the next one is written from, (N, D)."""
        text_NKQ = jax.lax.dynamic_update_index_in_dim(memory, token_NQ, place, axis=1)
        count, length = text_NKQ.shape[:2]
        position_NK = jnp.broadcast_to(jnp.arange(length), (count, length))
        one_NK = jnp.ones((count, length), jnp.int32)
        texts = CaptionTexts(text_BKQ=text_NKQ, segment_BK=one_NK, position_BK=position_NK)
        x_NKD = self._model.read(texts, 1, self._features.clip.tokens_BLD.dtype).states_BKD
        x_NKD, _ = map_blocks(self._model.multimodal, x_NKD, self._clips.clip, self._reread)
        hidden_NKD = self._model.norm_text(x_NKD)
        return jax.lax.dynamic_index_in_dim(hidden_NKD, place, axis=1, keepdims=False), text_NKQ

    def moved(self, memory: WriterMemory, parent_N: jax.Array) -> WriterMemory:
        """Returns the memory in which each caption is what `parent_N` was."""
        return memory[parent_N]

    def _reread(self, block: TextHalfBlock, x_NKD: jax.Array, clip_keys: Keys) -> tuple[jax.Array, tuple[()]]:
        """Returns what a multimodal block makes of whole captions."""
        rows, texts = self._segment_BR.shape
        one_NK, y_NKD = jnp.ones(x_NKD.shape[:2], jnp.int32), block.norm1(x_NKD)
        x_NKD = x_NKD + block.attn1(y_NKD, block.attn1.keys(y_NKD), one_NK, one_NK, segments=1, causal=True)
        # Captions of a row see its clips together.
        x_BMD = x_NKD.reshape(rows, texts * x_NKD.shape[1], -1)
        segment_BM = jnp.repeat(self._segment_BR, x_NKD.shape[1], axis=1)
        keys = jnp.moveaxis(clip_keys[0], -1, 1), jnp.moveaxis(clip_keys[1], -1, 1)
        x_BMD = x_BMD + block.of_clip(x_BMD, keys, segment_BM, self._clips.clip_segment_BL, None)
        return block.feed(x_BMD.reshape(x_NKD.shape)), ()


_WAYS = (PackWriter, RereadingWriter)


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    subject = _random() if _WORKDIR.value is None else _trained(Workdir(_WORKDIR.value))
    publish(captioning_figures(subject, rounds=_ROUNDS.value, clock=_CLOCKS[_CLOCK.value]), _JSON.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A captioner, and what it is shown.

    Attributes:
      kept: Writes captions with kept keys.
      plain: Writes them without.
      params: Of the captioner.
      clips: To be described.
      weights: Which these are, in words.
    """

    kept: Describer
    plain: Describer
    params: Params
    clips: Sequence[LatentClip]
    weights: str


def _trained(workdir: Workdir) -> Subject:
    """Returns the captioner of a run, and clips that it prepared."""
    settings = read_settings(workdir.config())
    params, stage, step = load_captioner(workdir, settings)
    prepared = PreparedSet(*(workdir.prepared(name) for name in settings.collections))
    clips = [prepared[number % len(prepared)] for number in range(_CLIPS.value)]
    return _subject(settings, params, clips, f"trained weights, {stage} {step}")


def _random() -> Subject:
    """Returns a fresh captioner of `--config`, and noise of the sizes of its clips."""
    settings = read_settings(load_config(_CONFIG.value))
    params = init_params(functools.partial(build_captioner, settings), rng.key(settings.seed, "captioner"))
    world = settings.shapes.source(seed=settings.seed, split="heldout", num_clips=_CLIPS.value)
    noise, clips = rng.generator(settings.seed, "clips"), []
    for clip in map(world.__getitem__, range(_CLIPS.value)):
        grid = latent_grid(clip.pixels_THWC.shape[:3], settings.stride)
        latent_THWC = noise.standard_normal((*grid, settings.autoencoder.channels), np.float32)
        clips.append(EncodedClip(latent_THWC=latent_THWC, fps=clip.fps))
    return _subject(settings, params, clips, "random weights, clips of noise")


def _subject(settings: Settings, params: Params, clips: Sequence[LatentClip], weights: str) -> Subject:
    kept, plain = (make_describer(settings, rows=settings.packing.rows, writer=way) for way in _WAYS)
    return Subject(kept=kept, plain=plain, params=params, clips=clips, weights=weights)


def captioning_figures(subject: Subject, *, rounds: int, clock: Callable[[], float]) -> list[Figure]:
    """Returns how fast captions are written with kept keys, how much faster than plainly, and whether alike."""
    params, clips = subject.params, subject.clips

    def seconds_of(describe: Describer) -> float:
        began = clock()
        describe(params, clips)
        return clock() - began

    written = [describe(params, clips) for describe in (subject.kept, subject.plain)]  # compiles, too
    seconds = [(seconds_of(subject.kept), seconds_of(subject.plain)) for _ in range(rounds)]
    alike = [one.text == other.text for one, other in zip(*written, strict=True)]
    words = statistics.mean(len(one.text.split()) for one in written[0])
    return [
        Figure(
            name="clips_per_second",
            value=len(clips) / statistics.median(own for own, _ in seconds),
            target="at least 50",
            meaning=f"captions of {words:.1f} words on average, in batches, from latents to text; {subject.weights}",
        ),
        Figure(
            name="cached_over_plain",
            value=statistics.median(other / own for own, other in seconds),
            target="at least 5",
            meaning="seconds of writing each token from the whole caption so far, over those with kept keys",
        ),
        Figure(
            name="alike",
            value=statistics.mean(alike),
            target="at least 0.99",
            meaning=f"share of {len(clips)} captions that both ways write letter for letter",
        ),
    ]


if __name__ == "__main__":
    run_command(main, _FLAGS)
