"""Embeddings of prepared clips as a user has them: made, trained with, asked for, and refused in a sentence."""

import shutil

import jax
import numpy as np
import pytest

import sora_jax
from sora_jax.core.errors import UserError
from sora_jax.data.media.writer import write_clip
from sora_jax.data.shards.embeddings import EmbeddedBy, write_embeddings
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment.embeddings import ClipEmbedder, GivenEmbedder
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.settings import read_settings
from sora_jax.train.workdir import Workdir
from tests import toy


def test_a_run_without_a_captioner_or_of_another_autoencoder_embeds_nothing(toy_workdir):
    with pytest.raises(UserError, match=r"has no checkpoint of a captioner: train one with configs/captions.py"):
        ClipEmbedder(toy_workdir, autoencoder="a")
    with pytest.raises(UserError, match="holds no run"):
        ClipEmbedder(toy_workdir / "nothing", autoencoder="a")


def test_a_run_that_is_told_no_embeddings_says_so(toy_workdir):
    run = sora_jax.open_run(toy_workdir, devices=jax.devices()[:1])
    with pytest.raises(UserError, match=r"this run is told no embeddings of clips \(transformer.embedding is None\)"):
        run.sample(like=np.zeros((5, 16, 16, 3), np.uint8))


def test_shares_of_dropout_and_the_width_have_ranges():
    for key, value, said in (
        ("diffusion.embedding_dropout", (0.5, 1.0), r"embedding_dropout \(0.5, 1.0\) must be two shares in \[0, 1\)"),
        ("transformer.embedding", 0, r"config.transformer.embedding 0 must be at least 1"),
    ):
        config = toy.get_config()
        config.update_from_flattened_dict({key: value})
        with pytest.raises(UserError, match=said):
            read_settings(config)


@pytest.mark.slow
def test_clips_are_embedded_trained_with_and_asked_for(python, toy_workdir, tmp_path):
    captions, workdir = tmp_path / "captions", tmp_path / "embedded"
    base = (f"--config.autoencoder.start_from={toy_workdir}", f"--config.stages.prepare.start_from={toy_workdir}")
    done = python("-m", "sora_jax.main", "--config=tests/toy_captions.py", f"--workdir={captions}", *base)
    assert done.returncode == 0, done.stderr
    asked = ("--config=tests/toy.py", f"--workdir={workdir}", *base, "--config.transformer.embedding=8")
    lacking = python("-m", "sora_jax.main", *asked)
    assert lacking.returncode == 2, lacking.stderr
    assert "96 of 96 prepared clips have no embedding: run prepare with --embeddings=RUN" in lacking.stderr
    for said in ("written 96, unchanged 0", "written 0, unchanged 96"):
        prepared = python("-m", "sora_jax.prepare", *asked, f"--embeddings={captions}")
        assert prepared.returncode == 0, prepared.stderr
        assert f"embeddings of main: {said}" in prepared.stdout
    trained = python("-m", "sora_jax.main", *asked)
    assert trained.returncode == 0, trained.stderr
    write_clip(
        tmp_path / "clip.gif",
        np.arange(5, dtype=np.uint8)[:, None, None, None] * 50 + np.zeros((1, 16, 16, 3), np.uint8),
        fps=8.0,
    )
    made = python(
        "-m", "sora_jax.sample", f"--workdir={workdir}", f"--like={tmp_path}/clip.gif", f"--output={tmp_path}/a.gif"
    )
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "a.gif").exists()
    _check_python(workdir, captions, toy_workdir, tmp_path)


def _check_python(workdir, captions, toy_workdir, tmp_path):
    """What --like does from Python, and what is refused where the captioner is another one."""
    run = sora_jax.open_run(workdir, devices=jax.devices()[:1])
    (clip,) = run.sample(like=np.zeros((5, 16, 16, 3), np.uint8), frames=5)
    assert clip.shape == (5, 16, 16, 3)
    prepared = PreparedSet(workdir / "prepared")
    embedder = ClipEmbedder(captions, autoencoder=prepared.header["autoencoder"])
    texts_NE = embedder.of_texts(["a red circle", "a blue square moves up"])
    np.testing.assert_allclose(np.linalg.norm(texts_NE, axis=1), 1, atol=1e-5)
    assert np.abs(texts_NE[0] - texts_NE[1]).max() > 1e-3
    with pytest.raises(UserError, match=r"reads latents of the autoencoder .*, and those here are of zzz"):
        ClipEmbedder(captions, autoencoder="zzz")
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    for path in (other / "prepared").glob("*.embeddings.npz"):
        path.unlink()
    maker = EmbeddedBy(digest="b" * 64, folder=str(captions))
    write_embeddings(PreparedSet(other / "prepared"), lambda numbers: np.ones((len(numbers), 8), np.float32), maker)
    given = GivenEmbedder(RunModels(Workdir(other), read_settings(Workdir(other).config())))
    with pytest.raises(
        UserError, match=r"has embeddings by the captioner bbbbbbbbbbbb of .*, and here is the captioner"
    ):
        given(np.zeros((5, 16, 16, 3), np.uint8), 8.0)
