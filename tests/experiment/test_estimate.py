"""What a run is expected to take follows from its config, the machine and what is done."""

import dataclasses
import json

import pytest

from sora_jax.experiment import estimate
from sora_jax.experiment.datasets import open_collections
from sora_jax.experiment.estimate import EVALUATION, expected_parts
from sora_jax.experiment.heldout import count_heldout
from sora_jax.experiment.preflight import check_start
from sora_jax.experiment.settings import read_settings
from sora_jax.experiment.speed import Speed, clip_sizes, measure_speed
from sora_jax.train.workdir import Workdir

CPU = Speed(platform="cpu", product=1e9, host=1.0, compiled=False)


@pytest.fixture(scope="module")
def settings(toy_config):
    return read_settings(toy_config())


@pytest.fixture
def parts(settings, tmp_path):
    """Returns a function that returns the expected parts by name, with some settings or the speed otherwise."""
    mesh = check_start(settings)

    def expect(speed=CPU, *, clips=96, heldout=0, until=None, **changed):
        workdir, changed_settings = Workdir(tmp_path), dataclasses.replace(settings, **changed)
        found = expected_parts(changed_settings, mesh, workdir, speed, clips=clips, heldout=heldout, until=until)
        return {part.name: part for part in found}

    return expect


def test_a_run_has_its_stages_and_an_evaluation(parts):
    found = parts()
    assert [(part.name, part.total, part.unit) for part in found.values()] == [
        ("autoencoder", 8, "steps"),
        ("prepare", 96, "clips"),
        ("images", 6, "steps"),
        ("videos", 8, "steps"),
        (EVALUATION, 4, "judgements"),
    ]
    assert all(part.each > 0 and part.once > 0 and part.took is None for part in found.values())
    assert list(parts(until="prepare")) == ["autoencoder", "prepare"]


def test_twice_as_fast_a_machine_takes_half_as_long_and_what_is_compiled_is_quick(parts):
    slow, fast = parts(), parts(dataclasses.replace(CPU, product=2e9))
    for name, part in slow.items():
        assert part.each == pytest.approx(2 * fast[name].each), name
    ready, brisk = parts(dataclasses.replace(CPU, compiled=True)), parts(dataclasses.replace(CPU, host=2.0))
    for name, part in slow.items():
        assert ready[name].once < part.once
        assert brisk[name].once < part.once
        assert (ready[name].each, brisk[name].each) == (part.each, part.each)


def test_the_work_of_a_stage_follows_from_its_config(parts, settings):
    stage, twice = settings.stages["autoencoder"], ((1, 16, 16, 16), (5, 16, 16, 16))
    larger = dataclasses.replace(stage, crops=dataclasses.replace(stage.crops, buckets=twice))
    before, after = parts(), parts(stages={**settings.stages, "autoencoder": larger})
    assert after["autoencoder"].each == pytest.approx(2 * before["autoencoder"].each)
    frozen = dataclasses.replace(stage, freeze="encoder", start_from="runs/a/checkpoints/autoencoder")
    tuned = parts(stages={**settings.stages, "autoencoder": frozen})["autoencoder"]
    assert before["autoencoder"].each / 3 < tuned.each < before["autoencoder"].each
    deeper = dataclasses.replace(settings.transformer, depth=9)
    after = parts(transformer=deeper)
    assert after["videos"].each > 2 * before["videos"].each
    assert after["autoencoder"] == before["autoencoder"]
    none = dataclasses.replace(settings.log, samples_per_stage=0)
    assert parts(log=none)["videos"].once < before["videos"].once
    fewer = dataclasses.replace(settings.evaluation, prompts=0)
    assert parts(evaluation=fewer)[EVALUATION].each < before[EVALUATION].each


def test_what_is_measured_on_held_out_clips_on_the_way_is_counted(parts, settings, tmp_path):
    plain, measured = parts(heldout=24), {}
    alone, last = parts(), plain.pop(EVALUATION)
    assert plain.items() <= alone.items(), "nothing is measured on the way where log.validate_every is 0"
    assert last.each > alone[EVALUATION].each, "but at the end"
    plain[EVALUATION] = last
    for every in (2, 3, 4, 8, 100):
        log = dataclasses.replace(settings.log, validate_every=every)
        found = parts(heldout=24, log=log)
        measured[every] = {name: part.once - plain[name].once for name, part in found.items()}
        assert all(dataclasses.replace(part, once=plain[name].once) == plain[name] for name, part in found.items())
    assert all(found["autoencoder"] == found["prepare"] == found[EVALUATION] == 0 for found in measured.values())
    # Of 8 steps: 4 times; at 3, 6 and 8; 2 times; at the end, 2 times as often as wished.
    videos = {every: found["videos"] for every, found in measured.items()}
    once = videos[4] - videos[8]
    assert once > 0
    assert [(videos[every] - videos[8]) / once for every in (2, 3, 100)] == pytest.approx([3, 2, 0])
    # The first stage that is measured encodes them; one that goes on is measured as often as is left.
    log = dataclasses.replace(settings.log, validate_every=2)
    first = parts(heldout=24, log=log)
    (tmp_path / "heldout").mkdir()
    (tmp_path / "checkpoints" / "videos" / "6").mkdir(parents=True)
    again = parts(heldout=24, log=log)
    assert again["images"].once < first["images"].once
    assert first["videos"].once - again["videos"].once == pytest.approx(3 * once)


def test_as_many_held_out_clips_are_measured_as_are_asked_for_evenly_of_collections(settings):
    (main,) = open_collections(settings)
    odd = dataclasses.replace(settings, evaluation=dataclasses.replace(settings.evaluation, clips=5))
    more, none = dataclasses.replace(main, name="more"), dataclasses.replace(main, name="none", heldout=None)
    assert [count_heldout([main], one) for one in (settings, odd)] == [8, 5]
    assert [count_heldout([main, other], odd) for other in (more, none)] == [6, 5]
    assert count_heldout([none], odd) == 0


def test_a_step_that_waits_for_the_host_takes_as_long_however_small(parts):
    gpu = Speed(platform="gpu", product=1e15, host=1.0, compiled=False)
    found = parts(gpu)
    assert found["images"].each == found["videos"].each == found["autoencoder"].each > 0


def test_what_the_workdir_says_is_done_is_done(parts, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"stages": {"autoencoder": {"seconds": 41.5}}}))
    for name in ("part000of001-000000", "part000of001-000001", "part001of002-000000"):
        (tmp_path / "prepared").mkdir(exist_ok=True)
        (tmp_path / "prepared" / f"{name}.index.npz").touch()
    for step in (3, 6):
        (tmp_path / "checkpoints" / "videos" / str(step)).mkdir(parents=True)
    found = parts()
    assert (found["autoencoder"].took, found["autoencoder"].left) == (41.5, 0.0)
    assert (found["prepare"].done, found["videos"].done) == (64, 6)
    assert found["videos"].left == pytest.approx(found["videos"].once + 2 * found["videos"].each)


def test_what_is_compiled_beside_an_earlier_stage_takes_little_of_its_own(parts, monkeypatch, tmp_path):
    beside = parts()
    monkeypatch.setattr(estimate, "is_possible", lambda: False)
    alone = parts()
    assert {name for name, part in beside.items() if part == alone[name]} == {"autoencoder", EVALUATION}
    for name in ("prepare", "images", "videos"):
        assert 0 < beside[name].compiling < alone[name].compiling / 2
        assert 0 < alone[name].once - beside[name].once < alone[name].compiling
    monkeypatch.undo()
    (tmp_path / "run.json").write_text(json.dumps({"stages": {"autoencoder": {"seconds": 41.5}}}))
    again = parts()
    assert (again["prepare"], again["images"]) == (alone["prepare"], beside["images"]), "the first that is left waits"


def test_clips_that_are_not_drawn_are_taken_to_be_as_large_as_samples(settings):
    data = dataclasses.replace(settings.data, source="folder", path="clips")
    assert clip_sizes(dataclasses.replace(settings, data=data), 0.25) == [(0.25, (1, 16, 16)), (0.75, (5, 16, 16))]
    shares, sizes = zip(*clip_sizes(settings), strict=True)
    assert sum(shares) == pytest.approx(1)
    assert set(sizes) == {(1, 16, 16), (1, 16, 24), (5, 16, 16), (5, 16, 24)}


def test_this_machine_has_a_speed(settings):
    speed = measure_speed(settings, check_start(settings).size, compiled=True)
    assert (speed.platform, speed.compiled) == ("cpu", True)
    assert speed.product > 1e8
    assert speed.host > 0
