"""Embeddings of clips, and of texts, by the captioner of a run: what a transformer may be told beside a text.

Letters: N clips or texts, E numbers of an embedding, T H W C pixels.
"""

import contextlib
import os
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from sora_jax.checkpoints.frozen import params_fingerprint
from sora_jax.core.errors import UserError
from sora_jax.core.paths import expanded
from sora_jax.core.stop import StopSignal
from sora_jax.data.shards.embeddings import EmbeddedBy, find_maker, write_embeddings
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.sources.base import digest
from sora_jax.experiment.captioners import load_captioner, make_describer
from sora_jax.experiment.loading import load_codec
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.schema import Settings
from sora_jax.experiment.settings import read_settings
from sora_jax.generate.captioning import EncodedClip, LatentClip
from sora_jax.train.progress import Progress
from sora_jax.train.workdir import Workdir


class ClipEmbedder:
    """The contrastive half of the captioner of a run.

    Args:
      folder: Workdir of the run.
      autoencoder: Fingerprint of the one that makes the latents which it is to read.

    Raises UserError where the run has no captioner, or one of latents of another autoencoder.

    Attributes:
      made_by: What embeds.
      width: E.
    """

    def __init__(self, folder: str | os.PathLike[str], *, autoencoder: str):
        workdir = Workdir(expanded(os.fspath(folder)))
        settings = read_settings(workdir.config())
        self._params, _, _ = load_captioner(workdir, settings)
        own = load_codec(workdir, settings).fingerprint()
        if own != autoencoder:
            raise UserError(
                f"the captioner of {workdir.path} reads latents of the autoencoder {own[:12]}, and those here are of "
                f"{autoencoder[:12]}: train it with --config.autoencoder.start_from of this run"
            )
        self._describer = make_describer(settings, rows=settings.packing.rows)
        self.made_by = EmbeddedBy(digest=digest(params_fingerprint(self._params), own), folder=str(workdir.path))
        self.width = settings.captioner.embedding

    def of_clips(self, clips: Sequence[LatentClip]) -> np.ndarray:
        """Returns embedding_NE, float32 of length 1, of prepared clips; UserError for one that no row holds."""
        return self._describer.compared(self._params, clips, [""] * len(clips))[0]

    def of_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns embedding_NE, float32 of length 1, of texts: near those of the clips that they tell of."""
        return self._describer.compared(self._params, [None] * len(texts), texts)[1]


def embed_prepared(config: ConfigDict, path: str | os.PathLike[str], captioner: str) -> None:
    """Writes the embedding of each prepared clip beside its shard, by the captioner of the run in `captioner`.

    Clips that have one keep it. Raises UserError where nothing is prepared, as `ClipEmbedder`, where the captioner is
    another than that of embeddings that are there, and where the transformer is told ones of another width.
    """
    settings = read_settings(config)
    with Workdir(path) as workdir, StopSignal() as stop:
        workdir.claim(config)
        sets = {name: PreparedSet(workdir.prepared(name)) for name in settings.collections}
        embedder: ClipEmbedder | None = None
        for name, prepared in sets.items():
            embedder = embedder or ClipEmbedder(captioner, autoencoder=prepared.header["autoencoder"])
            _check_width(settings, embedder)
            _embed(name, prepared, embedder, stop)


def _embed(name: str, prepared: PreparedSet, embedder: ClipEmbedder, stop: StopSignal) -> None:
    with contextlib.closing(Progress("embeddings", total=len(prepared), unit="clips")) as bar:

        def show(done: int) -> None:
            bar.update(done)
            stop.check(f"{done} of {len(prepared)} clips have their embedding")

        def embed(numbers: Sequence[int]) -> np.ndarray:
            return embedder.of_clips([prepared[number] for number in numbers])

        written = write_embeddings(prepared, embed, embedder.made_by, progress=show)
    print(f"  embeddings of {name}: written {written}, unchanged {len(prepared) - written}", flush=True)


def _check_width(settings: Settings, embedder: ClipEmbedder) -> None:
    """Raises UserError where the transformer is told embeddings of another width."""
    wanted = settings.transformer.embedding
    if wanted not in (None, embedder.width):
        raise UserError(
            f"{embedder.made_by} makes embeddings of {embedder.width} numbers, and transformer.embedding is {wanted}: "
            f"set it to {embedder.width}"
        )


class GivenEmbedder:
    """Embeds given videos for the transformer of a run, by the captioner that embedded the clips it was trained on.

    It loads when it is first called. That captioner is the one of `sampling.captioner`, else the one that embeddings of
    prepared clips name, else that of the run itself.
    """

    def __init__(self, models: RunModels):
        self._models = models
        self._embedder: ClipEmbedder | None = None

    def __call__(self, pixels_THWC: np.ndarray, fps: float) -> np.ndarray:
        """Returns embedding_E, float32 of length 1, of a uint8 clip of a size and length that the strides divide.

        Raises UserError where the captioner is missing, or is another than in training.
        """
        clip = EncodedClip(latent_THWC=self._models.encode(pixels_THWC), fps=fps)
        return self._loaded().of_clips([clip])[0]

    def _loaded(self) -> ClipEmbedder:
        if self._embedder is None:
            workdir, settings = self._models.workdir, self._models.settings
            made_by = find_maker(workdir.prepared())
            folder = settings.sampling.captioner or (workdir.path if made_by is None else made_by.folder)
            self._embedder = ClipEmbedder(folder, autoencoder=self._models.codec.fingerprint())
            _check_width(settings, self._embedder)
            if made_by is not None:
                self._embedder.made_by.check_is(made_by, workdir.prepared())
        return self._embedder
