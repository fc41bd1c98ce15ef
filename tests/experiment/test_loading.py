"""What other commands load from a workdir, and the data that stages draw from."""

import contextlib
import dataclasses
import itertools
import json
import logging
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.tree import abstract_model
from sora_jax.data.fitting import Collection, FittedSource
from sora_jax.data.media.writer import write_clip
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.data.sources.base import FolderSource
from sora_jax.data.tokens import BYTES_PER_TOKEN
from sora_jax.experiment import datasets, evaluation, loading, sample_log
from sora_jax.experiment.models import RunModels
from sora_jax.experiment.settings import read_settings
from sora_jax.train.changes import completed
from sora_jax.train.workdir import Workdir
from tests.small import one_device


@pytest.fixture(scope="module")
def settings(toy_config):
    return read_settings(toy_config())


@pytest.fixture(scope="module")
def workdir(toy_workdir):
    return Workdir(toy_workdir)


def test_settings_of_a_run_are_those_of_its_config(workdir, settings):
    assert read_settings(workdir.config()) == settings


def test_the_config_of_an_earlier_version_reads_as_it_was(workdir, settings):
    config = workdir.config()
    del config["text"]["encoder"], config["log"]["profile_steps"], config["autoencoder"]["start_from"]
    for name in settings.run:
        for later in ("optimizer", "trainable", "frozen_dtype"):
            if name != "autoencoder" or later != "optimizer":
                config["stages"][name].pop(later, None)
    assert read_settings(completed(config)) == settings


def test_the_codec_is_the_average_with_the_statistics(workdir, settings):
    codec = loading.load_codec(workdir, settings)
    statistics = workdir.read_json("latents.json")
    np.testing.assert_array_equal(codec.mean_C, statistics["mean"])
    np.testing.assert_array_equal(codec.scale_C, statistics["scale"])
    header = PreparedSet(workdir.prepared()).header
    assert header["autoencoder"] == codec.fingerprint(), "the shards were made with it"
    assert codec.params.keys() == abstract_model(lambda key: loading.build_autoencoder(settings, key))[1].keys()


def test_prepared_latents_have_zero_mean_and_unit_variance_over_all_channels(workdir):
    prepared = PreparedSet(workdir.prepared())
    values = np.concatenate([prepared[i].latent_THWC.reshape(-1, 4) for i in range(len(prepared))])
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=0.15)
    np.testing.assert_allclose(values.var(axis=0).mean(), 1, atol=0.15)


def test_the_generator_is_that_of_the_newest_stage(workdir, settings, tmp_path):
    params, stage, step = loading.load_generator(workdir, settings)
    assert (stage, step) == ("videos", 8)
    older, stage, step = loading.load_generator(workdir, settings, step=6)
    assert (stage, step) == ("videos", 6)
    assert any(np.any(params[name] != older[name]) for name in params)
    copy = Workdir(shutil.copytree(workdir.path, tmp_path / "toy"))
    shutil.rmtree(copy.checkpoints("videos"))
    (copy.checkpoints("videos") / "3.orbax-checkpoint-tmp").mkdir(parents=True)  # a save that was cut short
    assert loading.load_generator(copy, settings)[1:] == ("images", 6)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_the_last_weights_are_there_beside_the_average(workdir, settings):
    average, last = (loading.load_generator(workdir, settings, weights=weights)[0] for weights in loading.WEIGHTS)
    step = workdir.checkpoints("videos") / "8" / "state"
    tree = ocp.PyTreeCheckpointer().restore(step)
    for name in average:
        np.testing.assert_array_equal(average[name], tree["ema"]["width_0.1"][name])
        np.testing.assert_array_equal(last[name], tree["params"][name])
    assert any(np.any(average[name] != last[name]) for name in average)


@pytest.mark.parametrize(("videos", "devices", "rows"), [(None, 1, 8), (1, 1, 1), (3, 1, 4), (9, 1, 8), (1, 4, 4)])
def test_a_sampler_computes_no_more_rows_than_videos_need(workdir, settings, videos, devices, rows):
    sizes = MeshConfig(data=devices, fsdp=1, sequence=1, tensor=1)
    mesh = None if devices == 1 else make_mesh(sizes, jax.devices()[:devices])
    structure = abstract_model(lambda key: loading.build_generator(settings, key))[0]
    codec = loading.load_codec(workdir, settings)
    assert loading.make_sampler(settings, codec, structure, mesh=mesh, videos=videos).rows == rows


def test_what_is_not_there_yet_is_told(settings, tmp_path):
    with pytest.raises(UserError, match="has no trained autoencoder yet: run main until that stage is done"):
        loading.load_codec(Workdir(tmp_path), settings)
    with pytest.raises(UserError, match="has no checkpoint of a transformer yet"):
        loading.load_generator(Workdir(tmp_path), settings)


def test_pixels_are_tokens_of_the_autoencoder(settings):
    stage = settings.stages["autoencoder"]
    stream = datasets.PixelBatches(FittedSource(datasets.open_collections(settings)), stage.crops, seed=0)
    with contextlib.closing(stream.batches(0)) as batches:
        first, second = itertools.islice(batches, 2)
    with contextlib.closing(stream.batches(1)) as batches:
        np.testing.assert_array_equal(next(batches)["clip_BTHWC"], second["clip_BTHWC"])
    assert stream.tokens(first) == (8 * 16 * 16, 8 * 16 * 16)
    assert stream.tokens(second) == (8 * 5 * 16 * 16,) * 2
    assert json.loads(json.dumps(stream.fingerprint())) == stream.fingerprint()


@pytest.mark.parametrize(("stage", "image_share"), [("images", 1.0), ("videos", None)])
def test_packs_hold_what_the_mix_says(workdir, settings, stage, image_share):
    prepared = PreparedSet(workdir.prepared())
    stream = datasets.PackedBatches(prepared, settings, mix=settings.stages[stage].mix)
    with contextlib.closing(stream.batches(0)) as batches:
        packs = list(itertools.islice(batches, 8))
    with contextlib.closing(stream.batches(3)) as batches:
        np.testing.assert_array_equal(next(batches)["tokens_BLP"], packs[3]["tokens_BLP"])
    samples = np.concatenate([pack["sample_BS"][pack["sample_BS"] >= 0] for pack in packs])
    images = prepared.grid_N3[samples][:, 0] == 1
    mix = settings.stages[stage].mix
    assert images.mean() == pytest.approx(mix.images / (mix.images + mix.videos) if image_share is None else 1, abs=0.1)
    for pack in packs:
        real, possible = stream.tokens(pack)
        assert possible == 8 * 36
        assert real == np.prod(pack["grid_BS3"], axis=-1).sum()
        assert pack["text_BKQ"].shape == (8, 96, BYTES_PER_TOKEN)


def test_packs_lose_the_tokens_that_the_stage_says(workdir, settings):
    stage = dataclasses.replace(settings.stages["videos"], token_drop=(0.5, 0.5))
    stream = datasets.PackedBatches(
        PreparedSet(workdir.prepared()), settings, mix=stage.mix, token_drop=stage.token_drop
    )
    with contextlib.closing(stream.batches(0)) as batches:
        packs = list(itertools.islice(batches, 4))
    for pack in packs:
        assert stream.tokens(pack)[0] == pytest.approx(np.prod(pack["grid_BS3"], axis=-1).sum() / 2, rel=0.05)
    assert stream.fingerprint()["token_drop"] == [0.5, 0.5]


def test_clips_to_show_are_spread_over_the_source_and_bad_ones_passed_over(settings):
    (collection,) = datasets.open_collections(settings)
    assert (collection.limits.stride, collection.limits.max_tokens) == ((4, 8, 8), 24)
    source = FittedSource([collection])
    ids = [clip.source_id for clip in sample_log.choose_clips(source, count=4, sizes=9)]
    assert ids == [source.source_id(index) for index in (0, 31, 63, 95)]
    assert len(sample_log.choose_clips(source, count=1000, sizes=9)) == 96


def test_only_the_commonest_sizes_are_chosen(settings, tmp_path):
    for number, width in enumerate((16, 24, 32, 24, 40, 32, 24)):  # px
        write_clip(tmp_path / f"{number}.png", np.full((1, 16, width, 3), 9 * number, np.uint8), fps=8.0)
        (tmp_path / f"{number}.txt").write_text("grey")
    limits = datasets.clip_limits(settings, settings.data)
    source = FittedSource([Collection(name="main", source=FolderSource(tmp_path), limits=limits)])
    chosen = sample_log.choose_clips(source, count=7, sizes=2)
    assert [clip.pixels_THWC.shape[2] for clip in chosen] == [24, 32, 24, 32, 24]


def test_a_drawn_world_is_judged_on_clips_held_out_and_a_folder_on_its_own(toy_config, tmp_path):
    clips, held_out = evaluation.evaluation_clips(Workdir(tmp_path / "w"), read_settings(toy_config()))
    assert held_out
    assert len(clips) == 8
    assert all("heldout" in clip.source_id for clip in clips)
    for number in range(3):
        write_clip(tmp_path / f"{number}.gif", np.full((5, 16, 16, 3), 9 * number, np.uint8), fps=8.0)
        (tmp_path / f"{number}.txt").write_text("grey")
    config = toy_config()
    config.data.source, config.data.path = "folder", str(tmp_path)
    clips, held_out = evaluation.evaluation_clips(Workdir(tmp_path / "w"), read_settings(config))
    assert not held_out
    assert [clip.source_id for clip in clips] == ["0.gif", "1.gif", "2.gif"]


def test_only_a_drawn_world_tells_how_prompts_are_followed(workdir, settings):
    folder = dataclasses.replace(settings, data=dataclasses.replace(settings.data, source="folder", path="clips"))
    with pytest.raises(UserError, match=r"only of a drawn world .* pass --part=heldout"):
        evaluation.evaluate(RunModels(workdir, folder), folder, part="generator")


def test_a_folder_says_what_it_leaves_out(toy_config, tmp_path, caplog):
    for name in ("a.gif", "b.gif"):
        write_clip(tmp_path / name, np.zeros((2, 16, 16, 3), np.uint8), fps=8.0)
    (tmp_path / "captions.jsonl").write_text('{"file": "a.gif", "caption": "x"}\n{"file": "c.gif", "caption": "y"}')
    config = toy_config()
    config.data.source, config.data.path = "folder", str(tmp_path)
    with caplog.at_level(logging.WARNING):
        (collection,) = datasets.open_collections(read_settings(config))
    assert len(collection.source) == 1
    assert "1 files without a caption are left out: b.gif" in caplog.text
    assert "1 captions name no file: c.gif" in caplog.text


@one_device()
def test_a_world_of_two_objects_and_of_captions_with_gaps_is_asked_for_both(workdir, settings, tmp_path):
    copy = Workdir(shutil.copytree(workdir.path, tmp_path / "toy"))
    shapes = dataclasses.replace(settings.shapes, max_objects=2, caption_faults=(0.1, 0.0))
    two = dataclasses.replace(settings, shapes=shapes)
    models = RunModels(copy, settings)
    alone, both = evaluation.evaluate(models, settings), evaluation.evaluate(models, two)
    assert alone.keys() == {"autoencoder", "heldout", "shapes"}
    assert both.keys() == {"autoencoder", "heldout", "shapes", "shapes_open", "shapes_pairs"}
    assert both["shapes"] == alone["shapes"]
    assert both["shapes_pairs"]["prompts"] == settings.evaluation.prompts
    assert both["shapes_open"]["prompts"] == -(-settings.evaluation.prompts // 3)
    assert copy.read_json("evaluation.json") == both
    assert {path.name for path in (copy.path / "samples" / "evaluation").iterdir()} == {
        "shapes.gif",
        "shapes_open.gif",
        "shapes_open_verdicts.png",
        "shapes_pairs.gif",
        "shapes_pairs_verdicts.png",
        "shapes_verdicts.png",
        "worst_reconstructions.png",
    }
