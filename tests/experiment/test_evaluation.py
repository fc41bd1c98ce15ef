"""What stays in evaluation.json when a run is judged again."""

import types

import pytest

from sora_jax.core.errors import UserError
from sora_jax.experiment import evaluation
from sora_jax.train.workdir import Workdir

NOW = {"stage": "videos", "step": 8, "weights": "ema"}
PARTS = ("tasks", "refine", "control", "expand", "probes")


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """Returns what evaluates a part of a run without a model, after results that are given: (results, part) -> all."""
    monkeypatch.setattr(evaluation, "prompt_sets", lambda settings: {})
    monkeypatch.setattr(evaluation, "clips_of_parts", lambda *_, **__: dict.fromkeys(PARTS, 0))
    monkeypatch.setattr(evaluation, "has_captions", lambda settings: False)
    monkeypatch.setattr(evaluation, "_heldout", lambda *_, **__: {"heldout": {"loss": 1.0, **NOW}})
    monkeypatch.setattr(evaluation, "_autoencoder", lambda *_, **__: {"autoencoder": {"psnr": 30.0}})
    models = types.SimpleNamespace(workdir=Workdir(tmp_path), codec=None, facts=lambda: NOW)

    def judged(known, part):
        models.workdir.write_json("evaluation.json", known)
        result = evaluation.evaluate(models, None, part=part)
        assert models.workdir.read_json("evaluation.json") == result
        return result

    return judged


def test_what_all_does_not_make_stays_where_it_is_of_the_same_weights(judge):
    given = {"clips": 9, "samples_from": "elsewhere"}
    same, earlier = {"score": 0.5, **NOW}, {"score": 0.5, **NOW, "step": 6}
    fixed = {"autoencoder": {"psnr": 30.0}, "heldout": {"loss": 1.0, **NOW}}
    known = {"heldout": {"loss": 2.0}, "shapes": same, "refine": same, "control": earlier, "distribution": given}
    assert judge(known, "all") == {**fixed, "refine": same, "distribution": given}
    assert judge({"expand": {**same, "lora": {"own": 0.5}}, "control": {**same, "ema": 0.1}}, "all") == fixed
    assert judge(known, "heldout") == {**known, "heldout": fixed["heldout"]}


@pytest.mark.parametrize(
    ("part", "given", "fault"),
    [
        ("distribution", {"clips": 4}, "--clips changes nothing of --part=distribution: .*--samples is how many"),
        ("heldout", {"clips": 4, "draws": 2}, "--draws changes nothing of --part=heldout: leave it out$"),
        ("all", {"captioner": "runs/a"}, "--captioner changes nothing of --part=all"),
        ("tasks", {"lpips": "a.safetensors"}, "--lpips changes nothing of --part=tasks"),
    ],
)
def test_what_a_part_does_not_use_is_refused(part, given, fault):
    with pytest.raises(UserError, match=fault):
        evaluation.check_asked(part, None, "ema", **given)
    evaluation.check_asked(part, None, "ema", **dict.fromkeys(given))


def test_what_parts_use_is_taken():
    for part in evaluation.PARTS:
        evaluation.check_asked(part, None, "ema", **({} if part in ("generator", "distribution") else {"clips": 4}))
    evaluation.check_asked("expand", None, "ema", draws=6, captioner="runs/a")
    evaluation.check_asked("autoencoder", None, "ema", lpips="a.safetensors")
