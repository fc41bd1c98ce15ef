"""Preparing as a user does it: in several processes, over a heap that grows, of several collections."""

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from configs import base
from sora_jax.core.errors import UserError
from sora_jax.data.media.writer import write_clip
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment import run as runs
from sora_jax.experiment.datasets import open_collections
from sora_jax.experiment.kinds.prepare import _check_cut_alike, _take_over
from sora_jax.experiment.settings import read_settings
from sora_jax.preparation.encode import Share
from sora_jax.train.workdir import Workdir
from tests.small import one_device

CLIPS = 9


def draw(folder, numbers, *, frames=5):
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, size=(frames, 16, 16, 3), dtype=np.uint8)
        write_clip(folder / f"{number:02d}.gif", pixels, fps=8.0)
        (folder / f"{number:02d}.txt").write_text(f"clip number {number}")


def names(*directories):
    prepared = PreparedSet(*directories)
    return [prepared[number].source_id for number in range(len(prepared))]


@pytest.fixture
def heap(python, tmp_path):
    """A folder, the arguments of a run over it, and its workdir: the autoencoder is trained, nothing is prepared."""
    folder, workdir = tmp_path / "clips", tmp_path / "run"
    draw(folder, range(CLIPS))
    arguments = (
        "--config=tests/toy.py",
        "--config.data.source=folder",
        f"--config.data.path={folder}",
        f"--workdir={workdir}",
        "--config.data.curation.min_brightness=1.0",
        "--config.stages.autoencoder.steps=1",
        "--config.stages.autoencoder.crops.buckets=((5,16,16,8),)",
        "--config.stages.prepare.clips_per_shard=2",
        "--config.stages.prepare.batch=2",
    )

    def command(name, *more, **how):
        return python("-m", f"sora_jax.{name}", *arguments, *more, **how)

    return folder, workdir, command


@pytest.mark.slow
def test_processes_share_a_heap_that_grows(heap):
    folder, workdir, command = heap
    early = command("prepare", "--process_index=1", "--process_count=2")
    assert early.returncode == 2
    assert "has no trained autoencoder yet: run main until that stage is done" in early.stderr
    assert command("main", "--until=autoencoder").returncode == 0
    assert not (workdir / "prepared").exists()

    flags = [(f"--process_index={index}", "--process_count=2") for index in range(2)]
    with ThreadPoolExecutor(2) as at_once:
        shares = list(at_once.map(lambda own: command("prepare", *own, fresh=True), flags))
    assert [share.returncode for share in shares] == [0, 0], shares[0].stderr + shares[1].stderr
    assert "written 5, already done 0" in shares[0].stdout
    assert "written 4, already done 0" in shares[1].stdout
    assert "prepare 5/5 clips" in shares[0].stderr
    assert "prepare 4/4 clips" in shares[1].stderr
    assert (workdir / "curation" / "windows.jsonl").read_text().count("\n") == CLIPS, "each file is scanned once"
    whole = command("prepare")
    assert "written 0, already done 9" in whole.stdout, whole.stderr
    assert names(workdir / "prepared") == [f"{number:02d}.gif#0-4" for number in range(CLIPS)]

    draw(folder, [20])
    (folder / "03.txt").write_text("said in other words")
    (folder / "04.gif").unlink()
    grown = command("prepare")
    assert "written 2, already done 7" in grown.stdout, grown.stderr
    assert "stage 2 of 2: prepare" in grown.stdout
    prepared = PreparedSet(workdir / "prepared")
    captions = {one.source_id: one.captions for one in map(prepared.__getitem__, range(len(prepared)))}
    assert list(captions) == [f"{number:02d}.gif#0-4" for number in (0, 1, 2, 3, 5, 6, 7, 8, 20)]
    assert captions["03.gif#0-4"] == ("said in other words",)
    (folder / "05.txt").write_text("told anew")
    reworded = command("prepare", "--captions_only")
    assert "captions of main: rewritten 1, unchanged 8, skipped 0" in reworded.stdout, reworded.stderr
    assert PreparedSet(workdir / "prepared")[4].captions == ("told anew",)
    assert "stage 2 of 2" not in command("prepare").stdout, "nothing has changed since"


def test_a_share_that_does_not_exist_is_refused(heap):
    done = heap[2]("prepare", "--process_index=2", "--process_count=2")
    assert done.returncode == 2
    assert "process_index 2 must be 0 or more and less than process_count 2" in done.stderr


def with_stills(config, folder):
    draw(folder, range(6), frames=1)
    with config.unlocked():
        config.more_data.stills = base.collection()
        config.more_data.stills.update({"source": "folder", "path": str(folder), "max_tokens": 4})
    config.stages.images.mix.collections = {"stills": 3.0, "main": 1.0}
    config.stages.images.steps = 1
    config.run = ("prepare", "images")
    # Nothing is asked about what they learn.
    config.log.samples_per_stage, config.evaluation.prompts, config.evaluation.clips = 0, 0, 1
    return config


@pytest.fixture
def two_collections(toy_config, tmp_path):
    return with_stills(toy_config(), tmp_path / "stills")


@pytest.fixture(scope="module")
def mixed(toy_config, toy_workdir, tmp_path_factory):
    """Returns the config, the second collection and the workdir of a run on two collections."""
    place = tmp_path_factory.mktemp("mixed")
    config = with_stills(toy_config(), place / "stills")
    config.autoencoder.start_from = str(toy_workdir)
    with one_device():
        runs.run(config, place / "run")
    return config, place / "stills", place / "run"


def test_collections_are_prepared_apart_and_mixed_by_weight(mixed):
    workdir = mixed[2]
    assert len(PreparedSet(workdir / "prepared")) == 96
    assert names(workdir / "prepared" / "stills") == [f"{number:02d}.gif" for number in range(6)]
    saved = json.loads(next((workdir / "checkpoints" / "images").glob("1/data/metadata")).read_text())
    assert saved["mix"] == {"images": 1.0, "collections": [1.0, 3.0]}
    assert json.loads((workdir / "run.json").read_text())["stages"]["prepare"]["written"] == 102


def forget_images(workdir):
    """Makes a run as if its stage of images had been stopped after its last checkpoint."""
    facts = json.loads((workdir / "run.json").read_text())
    del facts["stages"]["images"], facts["evaluated"]
    (workdir / "run.json").write_text(json.dumps(facts))


@one_device()
def test_clips_that_moved_or_are_gone_do_not_end_a_run(mixed, tmp_path, caplog):
    config, folder, finished = mixed
    workdir = Path(shutil.copytree(finished, tmp_path / "run"))
    config = config.copy_and_resolve_references()
    moved = shutil.copytree(folder, tmp_path / "moved")
    config.more_data.stills.path, config.data.readers = f"{moved}/", config.data.readers + 1
    forget_images(workdir)
    runs.run(config, workdir, until="diffusion")
    assert json.loads((workdir / "config.json").read_text())["more_data"]["stills"]["path"] == f"{moved}/"
    shutil.rmtree(moved)
    draw(tmp_path / "others", range(3), frames=1)
    forget_images(workdir)
    with caplog.at_level(logging.WARNING):
        runs.run(config, workdir, until="diffusion")
    assert f"{moved} does not exist" in caplog.text
    assert ": the run goes on with what was prepared of them" in caplog.text
    assert "images" in json.loads((workdir / "run.json").read_text())["stages"]
    config.more_data.stills.path = str(tmp_path / "others")
    with pytest.raises(UserError, match=r"others\": these are not the clips with .* pass --fresh_data to keep"):
        runs.run(config, workdir, until="diffusion")
    config.more_data.stills.path = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"does not exist"):
        runs.run(config, workdir, until="prepare")


@one_device()
def test_a_stage_in_progress_takes_in_new_clips_only_when_told(mixed, tmp_path, caplog):
    config, folder, finished = mixed
    workdir = Path(shutil.copytree(finished, tmp_path / "run"))
    stills = workdir / "prepared" / "stills"

    def go_on(**options):
        forget_images(workdir)
        runs.run(config, workdir, **options)

    draw(folder, range(6, 8), frames=1)
    with caplog.at_level(logging.WARNING):
        go_on()
    assert "the clips changed after they were prepared; images goes on with what was prepared then" in caplog.text
    assert len(names(stills)) == 6
    go_on(until="prepare")
    assert len(names(stills)) == 8, "preparing is what was asked for"
    with pytest.raises(UserError, match=r"data was .* and is now .* pass --fresh_data to keep"):
        runs.run(config, workdir)
    runs.run(config, workdir, fresh_data=True)
    assert "batches from step 1 on are those of other data" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.max_frames", 9, r"of .*other were prepared with data\.max_frames 5, and here it is 9: give the same"),
        ("more_data.stills.min_tokens", 2, r"with more_data\.stills\.min_tokens 4, and here it is 2"),
        ("text.max_tokens", 20, r"with text\.max_tokens 24, and here it is 20"),
    ],
)
def test_clips_that_were_cut_otherwise_are_not_taken_over(two_collections, tmp_path, key, value, said):
    two_collections.autoencoder.start_from = "runs/other"
    other = Workdir(tmp_path / "other")
    with other:
        other.claim(two_collections)
    _check_cut_alike(read_settings(two_collections), other)
    two_collections.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=said):
        _check_cut_alike(read_settings(two_collections), other)


def test_a_collection_that_the_other_run_has_not_is_left_to_be_encoded(two_collections, toy_workdir, tmp_path):
    two_collections.autoencoder.start_from = two_collections.stages.prepare.start_from = str(toy_workdir)
    settings, here = read_settings(two_collections), Workdir(tmp_path / "run")
    _take_over(settings, here, open_collections(settings), settings.text_encoder.tokenizer.recipe)
    assert len(list(here.prepared().glob("*.arrayrecord"))) == 3
    assert not here.prepared("stills").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stages.images.mix.collections", {"films": 1.0}, "names films; there are main, stills"),
        ("stages.images.mix.collections", {"main": 0.0}, "must have weights above 0"),
        ("more_data.stills.max_tokens", 99, "more_data.stills.max_tokens 99 exceeds a row's packing.tokens 36"),
        ("more_data.stills.path", None, "pass --config.more_data.stills.path=DIR"),
    ],
)
def test_what_is_wrong_with_a_collection_is_told(two_collections, key, value, said):
    two_collections.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        read_settings(two_collections)


def test_a_run_that_prepares_no_clips_has_no_share_of_them_and_no_captions_to_write(toy_config, tmp_path):
    config = toy_config()
    config.run = ("autoencoder",)
    said = "no stage of the run autoencoder prepares clips: name one in config.run, such as prepare"
    with pytest.raises(UserError, match=said):
        runs.prepare_share(config, tmp_path, Share(index=0, count=2))
    with pytest.raises(UserError, match=said):
        runs.rewrite_captions(config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["main", "a/b", "Stills"])
def test_a_collection_has_a_plain_name_of_its_own(two_collections, name):
    with two_collections.unlocked():
        two_collections.more_data[name] = two_collections.more_data.stills
    with pytest.raises(UserError, match="a collection's name is made of a to z, 0 to 9 and _, and is not 'main'"):
        read_settings(two_collections)
