"""A text encoder of a table's row alone: states stored by the prepare stage, trained on, and asked for when sampling.

The encoder is that of docs/extending.md, so the page is tried with it.
"""

import shutil
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.packing.packs import texts_of
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.experiment import datasets, loading
from sora_jax.experiment.programs import pack_shapes, work_of_rows
from sora_jax.experiment.run import run
from sora_jax.experiment.settings import read_settings
from sora_jax.generate.canvas import Canvas, lay_out
from sora_jax.models.flops import step_flops, transformer_flops
from sora_jax.models.text import ENCODERS
from sora_jax.models.text_to_video import without_caption
from sora_jax.train.metrics import read_metrics
from sora_jax.train.workdir import Workdir
from tests.small import one_device

PAGE = Path(__file__).parents[2] / "docs/extending.md"


@pytest.fixture(scope="module")
def words():
    """Adds the row of the page, for the tests of this file."""
    section = PAGE.read_text().partition("## Add a text encoder\n")[2]
    made: dict = {}
    exec(section.partition("```python\n")[2].partition("```")[0], made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "words", made["WordEncoder"])
        yield made["WordEncoder"]


@pytest.fixture(scope="module")
def config(words, toy_config, toy_workdir):
    config = toy_config()
    config.text.encoder = "words"
    config.autoencoder.start_from = str(toy_workdir)
    config.run = ("prepare", "videos")
    config.shapes.num_clips, config.shapes.sides = 32, ((16, 16),)
    config.packing.window = 16
    config.stages.videos.steps = 4
    config.log.samples_per_stage = 1
    config.sampling.prompts = ("a red circle",)
    config.diffusion.caption_dropout = 0.5
    config.optimizer.name, config.sampling.solver = "adamw", "euler"  # they compile faster
    return config


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "words"
    with one_device():
        run(config, path, until="diffusion")
    return Workdir(path)


@pytest.fixture(scope="module")
def settings(config):
    return read_settings(config)


@pytest.fixture(scope="module")
def pack(workdir, settings):
    prepared = PreparedSet(workdir.prepared())
    with datasets.PackedBatches(prepared, settings, mix=settings.stages["videos"].mix).batches(0) as batches:
        return next(batches)


def test_states_lie_in_the_shards_at_true_length(words, workdir):
    prepared, tokenizer = PreparedSet(workdir.prepared()), words.tokenizer
    assert prepared.header["text_encoder"] == "random features of words, version 1"
    for number in range(len(prepared)):
        sample = prepared[number]
        assert sample.texts is not None
        assert prepared.text_lengths[number] == [len(text["text_BKE"]) for text in sample.texts]
        for text, expected in zip(sample.texts, tokenizer.encode(sample.captions), strict=True):
            assert text["text_BKE"].dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(text["text_BKE"], expected["text_BKE"])
    assert len({length for lengths in prepared.text_lengths for length in lengths}) > 1
    (empty,) = tokenizer.encode([""])
    assert prepared.empty_text is not None
    np.testing.assert_array_equal(prepared.empty_text["text_BKE"], empty["text_BKE"])


def test_a_run_trains_and_samples_with_them(workdir, settings):
    lines = [line for line in read_metrics(workdir.path) if line.get("stage") == "videos" and "loss" in line]
    assert lines
    assert np.isfinite([line["loss"] for line in lines]).all()
    params, _, step = loading.load_generator(workdir, settings)
    assert step == 4
    assert not [name for name in params if name.startswith("text.")], "nothing of a frozen encoder is trained"
    projected = next(value for name, value in sorted(params.items()) if "text" in name and value.ndim == 2)
    assert 16 in projected.shape
    (clip,) = (workdir.path / "samples/videos/000004").glob("*.gif")
    assert read_clip(clip)[0].shape == (5, 16, 16, 3)


def test_prompts_are_encoded_as_captions_were(words, workdir, settings):
    sample = PreparedSet(workdir.prepared())[0]
    canvas = Canvas(prompt=sample.captions[0], grid=(2, 1, 1), fps=8.0, seed=0)
    (batch,), _ = lay_out([canvas], loading.pack_layout(settings), rows=1)
    assert sample.texts is not None
    stored_KE, (empty,) = sample.texts[0]["text_BKE"], words.tokenizer.encode([""])
    for texts, expected in ((batch.pack, stored_KE), (batch.negative, empty["text_BKE"])):
        assert (texts["text_segment_BK"][0] == 1).sum() == len(expected)
        np.testing.assert_array_equal(texts["text_BKE"][0, : len(expected)], expected)


def test_a_dropped_caption_leaves_the_empty_text_and_nothing_of_its_own(words, pack):
    dropped_BS = np.zeros(pack["sample_BS"].shape, bool)
    dropped_BS[:, 1] = True
    shown = without_caption({name: jnp.asarray(value) for name, value in pack.items()}, jnp.asarray(dropped_BS))
    second_BK = pack["text_segment_BK"] == 2
    first_BK = second_BK & (pack["text_position_BK"] == 0)
    assert second_BK.sum() > first_BK.sum() > 1
    np.testing.assert_array_equal(shown["text_segment_BK"], np.where(second_BK & ~first_BK, 0, pack["text_segment_BK"]))
    found, (empty,) = np.asarray(shown["text_BKE"]), words.tokenizer.encode([""])
    assert (found[first_BK] == empty["text_BKE"]).all()
    assert (pack["text_BKE"][first_BK] != empty["text_BKE"]).any(), "the first state of a caption knows all of it"
    np.testing.assert_array_equal(found[~second_BK], pack["text_BKE"][~second_BK])


def test_plans_and_counts_ask_the_encoder(settings, pack):
    planned = pack_shapes(settings, 8)
    assert {name: (one.shape, one.dtype) for name, one in planned.items()} == {
        name: (one.shape, one.dtype) for name, one in pack.items()
    }
    assert texts_of(planned).keys() == {"text_BKE", "text_segment_BK", "text_position_BK"}
    work = work_of_rows(settings, segment_tokens=12)
    forward = transformer_flops(settings.transformer, text_dim=16, patch_width=settings.patch_width, work=work)
    counted = step_flops(settings.transformer, settings.text_encoder, patch_width=settings.patch_width, work=work)
    assert counted == 3 * forward


def test_another_recipe_is_refused_by_name(workdir, config, monkeypatch, words):
    changed = {"text_encoder": "version 2", "tokenizer": "words, version 2"}
    monkeypatch.setattr(words.tokenizer, "recipe", changed, raising=False)
    config = config.copy_and_resolve_references()
    config.run = ("prepare", "videos", "images")
    said = (
        "the text encoder changed from random features of words, version 1 to version 2; "
        "the tokenizer changed from words, version 1 to words, version 2: prepare into a new directory"
    )
    with pytest.raises(UserError, match=said):
        run(config, workdir.path, until="diffusion")


def test_a_set_that_lost_its_empty_text_is_refused(workdir, settings, tmp_path):
    prepared = shutil.copytree(workdir.prepared(), tmp_path / "prepared")
    (prepared / "empty_text.bin").unlink()
    with pytest.raises(DataError, match=r"empty_text\.bin is missing; restore it from a copy, or run prepare"):
        datasets.PackedBatches(PreparedSet(prepared), settings, mix=settings.stages["videos"].mix)


def test_shards_of_states_are_refused_by_who_makes_tokens_of_bytes(workdir):
    with pytest.raises(UserError, match="the text encoder changed from random features of words, version 1 to byte"):
        PreparedSet.open([workdir.prepared()], BYTE_TOKENIZER.recipe)
