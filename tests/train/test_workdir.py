"""The folder of a run: whose it is, who writes to it, what is done."""

import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from sora_jax.core.errors import CommandError, StorageError, UserError
from sora_jax.core.files import write_atomically
from sora_jax.train.changes import completed
from sora_jax.train.workdir import Workdir


def config(**changes):
    tree = {"seed": 0, "stages": {"videos": {"steps": 3}}, "run": ("videos",), "size": (1, 2)}
    return ConfigDict(tree | changes)


def test_a_bucket_is_no_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--workdir=gs://a/run must be a folder of this machine"):
        Workdir("gs://a/run")
    assert os.listdir(tmp_path) == []


def test_a_workdir_whose_checkpoints_could_not_be_read_again_is_refused(tmp_path):
    for path in (tmp_path / "exp [lr=1e-3]", tmp_path / "a*" / "base"):
        with pytest.raises(UserError, match=r"or give another --workdir"):
            Workdir(path)
    assert os.listdir(tmp_path) == []
    (tmp_path / "exp [a]").mkdir()
    os.symlink(tmp_path / "exp [a]", tmp_path / "exp")
    with Workdir(tmp_path / "exp"):
        pass


def test_a_config_is_claimed_once_and_what_was_made_with_it_binds(tmp_path):
    with Workdir(tmp_path / "deep" / "run") as workdir:
        workdir.claim(config())
        workdir.finish_stage("videos", {})
        written = (workdir.path / "config.json").read_text()
        workdir.claim(config())
        assert workdir.config() == completed(json.loads(written))
        with pytest.raises(UserError, match="belongs to another config") as caught:
            workdir.claim(config(seed=1, stages={"videos": {"steps": 4}}))
        assert "(seed: 0 -> 1; stages.videos.steps: 3 -> 4)" in str(caught.value)
        assert "another --workdir" in str(caught.value)
        assert (workdir.path / "config.json").read_text() == written


def test_what_may_change_is_written_and_told(tmp_path, caplog):
    caplog.set_level("INFO")
    with Workdir(tmp_path) as workdir:
        workdir.claim(config(log={"every_steps": 1}))
        workdir.finish_stage("videos", {})
        workdir.claim(config(log={"every_steps": 2}))
        assert workdir.config()["log"] == {"every_steps": 2}
        assert [line.partition("changes: ")[2] for line in caplog.messages] == ["log.every_steps: 1 -> 2"]
        workdir.claim(config(log={"every_steps": 2}, stages={"videos": {"steps": 3}, "more": {"steps": 1}}))
        workdir.claim(config(log={"every_steps": 2}, stages={"videos": {"steps": 3}, "more": {"steps": 2}}))
        assert workdir.config()["stages"]["more"] == {"steps": 2}, "it has not begun"


def test_a_run_whose_config_is_older_than_a_key_goes_on(tmp_path):
    with Workdir(tmp_path) as workdir:
        workdir.claim(config(text={"width": 8}))
        workdir.finish_stage("videos", {})
        assert workdir.config()["text"] == {"encoder": "bytes", "width": 8}
        workdir.claim(config(text={"width": 8, "encoder": "bytes"}))
        with pytest.raises(UserError, match=r'belongs to another config \(text.encoder: "bytes" -> "words"\)'):
            workdir.claim(config(text={"width": 8, "encoder": "words"}))


def test_before_anything_is_made_all_may_change(tmp_path):
    with Workdir(tmp_path) as workdir:
        workdir.claim(config())
        workdir.claim(config(seed=1, size=(3, 4)), clips=lambda: {"main": "ab"})
        workdir.claim(config(seed=2, data={"path": "/other"}), clips=lambda: {"main": "cd"})
        assert workdir.config()["seed"] == 2
        workdir.prepared().mkdir()
        with pytest.raises(UserError, match=r"belongs to another config \(seed: 2 -> 3\)"):
            workdir.claim(config(seed=3, data={"path": "/other"}))


def test_a_run_of_before_stages_had_optimizers_goes_on_with_the_one_that_they_had(tmp_path):
    stage, optimizer = {"schedule": {"learning_rate": 1.0}}, {"b1": 0.9}
    old = config(stages={"videos": stage}, optimizer=optimizer)
    with Workdir(tmp_path) as workdir:
        workdir.claim(old)
        workdir.checkpoints("videos").mkdir(parents=True)
        assert "optimizer" not in workdir.read_json("config.json")["stages"]["videos"]
        assert workdir.config()["stages"]["videos"]["optimizer"] == optimizer
        workdir.claim(config(stages={"videos": stage | {"optimizer": optimizer}}, optimizer=optimizer))
        with pytest.raises(UserError, match=r"\(stages\.videos\.optimizer\.b1: 0\.9 -> 0\.5\)"):
            workdir.claim(config(stages={"videos": stage | {"optimizer": {"b1": 0.5}}}, optimizer=optimizer))


def test_a_file_that_lacks_something_is_damaged(tmp_path):
    with Workdir(tmp_path) as workdir:
        workdir.write_json("latents.json", {"mean": [0.0]})
        assert workdir.read_json("latents.json", "mean") == {"mean": [0.0]}
        with pytest.raises(StorageError, match=r"latents\.json is damaged \(stage, scale missing\)"):
            workdir.read_json("latents.json", "stage", "mean", "scale")


def test_clips_may_move_but_must_be_the_same(tmp_path):
    def claim(path, clips, **options):
        workdir.claim(config(data={"path": path}), clips=lambda: clips, **options)

    with Workdir(tmp_path) as workdir:
        claim("/mistyped", {"main": "other"})
        claim("/old", {"main": "ab"})
        workdir.finish_stage("videos", {})
        claim("/old/", {"main": "ab"})
        claim("/new", {"main": "ab"})
        for clips in ({"main": "cd"}, {}):
            with pytest.raises(UserError, match=r'data.path: "/new" -> "/others": these are not the clips with which'):
                claim("/others", clips)
        assert workdir.config()["data"] == {"path": "/new"}
        claim("/new", {"main": "grown"})
        claim("/newer", {"main": "grown"})
        claim("/newer", {})
        claim("/newest", {"main": "grown"})
        claim("/others", {"main": "cd"}, fresh_data=True)
        assert workdir.config()["data"] == {"path": "/others"}


def test_one_run_writes_at_a_time(tmp_path):
    with (
        Workdir(tmp_path) as workdir,
        pytest.raises(UserError, match=f"another run is writing to {workdir.path}: wait for it, or give another"),
        Workdir(tmp_path),
    ):
        pytest.fail("both were let in")
    with Workdir(tmp_path):
        pass


def test_reading_needs_no_lock(tmp_path):
    with Workdir(tmp_path) as workdir:
        workdir.claim(config())
        assert Workdir(tmp_path).config()["seed"] == 0


def test_a_folder_without_a_run_says_so(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"holds no run \(config.json is missing\): train one, or correct"):
            Workdir(path).config()
    assert not (tmp_path / "missing").exists(), "looking makes nothing"


def test_a_place_that_cannot_be_written_is_a_fault_of_storage(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write to"), Workdir(tmp_path / "file" / "run"):
        pytest.fail("it was made")


@pytest.mark.parametrize("text", ['{"seed": ', "[]", "[" * 100_000])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(StorageError, match=r"config\.json is damaged"):
        Workdir(tmp_path).config()


def test_finished_stages_are_remembered(tmp_path):
    with Workdir(tmp_path) as workdir:
        assert workdir.facts() == {"stages": {}}
        workdir.finish_stage("images", {"steps": 3})
        workdir.finish_stage("videos", {"steps": 4})
    assert Workdir(tmp_path).facts() == {"stages": {"images": {"steps": 3}, "videos": {"steps": 4}}}


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, json.dumps({"old": 1}))

    def crash(*_):
        raise OSError("the power went out")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power"):
        write_atomically(path, json.dumps({"new": 2}))
    assert json.loads(path.read_text()) == {"old": 1}
    assert stat.S_ISREG(path.stat().st_mode)


def test_places_of_a_run_are_inside_it(tmp_path):
    workdir = Workdir(tmp_path)
    places = [workdir.checkpoints("videos"), workdir.prepared(), workdir.samples("videos", 20)]
    assert all(place.is_relative_to(tmp_path) for place in places)
    assert len(set(places)) == 3
    assert workdir.samples("videos", 20).name == "000020"


NAMES = st.text(st.characters(), min_size=1, max_size=300)


@given(name=NAMES | st.sampled_from(["a[b]", "a\\b", "gs:", "..", ".", "~", "*"]))
def test_a_folder_of_any_name_is_a_workdir_or_refused_in_a_sentence(name, tmp_path_factory):
    path = tmp_path_factory.mktemp("named") / name.replace("\0", "").strip("/")
    refused: list[CommandError] = []
    try:
        with Workdir(path) as workdir:
            workdir.claim(config())
            assert Workdir(workdir.path).config()["seed"] == 0
    except CommandError as error:
        refused.append(error)
    assert all(str(error).startswith(("cannot write to ", "checkpoints cannot be kept under ")) for error in refused)
    assert not refused or not (path / "config.json").exists()
