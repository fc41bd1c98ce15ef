"""What stays in evaluation.json when a run is judged again."""

import types

import pytest

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
