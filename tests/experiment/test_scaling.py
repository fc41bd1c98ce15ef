"""The ladder of a study of scale, what its runs left, and what is written of them."""

import json

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.media.writer import encode_gif
from sora_jax.evaluation import budgets
from sora_jax.experiment.children import Study
from sora_jax.experiment.scaling import ladder, results_of
from sora_jax.experiment.scaling_report import write_study
from sora_jax.train.metrics import MetricsWriter
from tests.conftest import ROOT, TOY
from tests.reports.test_run_page import Page

GIVEN = {
    "scaling.widths": (8, 16),
    "scaling.depths": (1, 2),
    "scaling.compute": (4.0, 8.0, 16.0, 32.0),
    "scaling.seeds": (0, 3),
}
EVIL = "<b>a red circle</b>"


@pytest.fixture
def study(tmp_path):
    return Study(folder=tmp_path / "study", file=TOY, given=GIVEN)


@pytest.fixture
def rungs(study):
    return ladder(study)[1]


def loss_of(rung):
    return 0.3 + 0.1 * rung.compute**-0.5 + 0.01 * rung.seed + 0.05 * (rung.width == 8)


def write_lines(workdir, rung):
    """Writes lines of metrics: 50 tokens and 1e8 FLOP in each of the first three steps, twice as much in all others."""
    with MetricsWriter(workdir) as metrics:
        for name, steps in rung.steps.items():
            for step, factor in ((3, 1), (steps, 2)):
                rates = {"tokens_per_second": 100.0 * factor, "flops_per_second": 2e8 * factor}
                metrics.write(name, step, {"seconds_per_step": 0.5, **rates})
                metrics.write(name, step, {"heldout_loss": 1.0})


def finish(study, rung, **judged):
    """Writes what a finished run leaves, of round rates."""
    workdir = study.workdir(rung.child).path
    shown = workdir / "samples" / "videos" / f"{rung.steps['videos']:06d}"
    shown.mkdir(parents=True)
    (shown / "prompt_00.gif").write_bytes(encode_gif(np.full((2, 16, 16, 3), 8 * rung.width, np.uint8), fps=8))
    (shown.parent / "prompts.json").write_text(json.dumps({"prompt_00": EVIL}))
    write_lines(workdir, rung)
    # As of a stage that was stopped after its last step: no step was timed since.
    facts = {"stages": {name: {"steps": n} for name, n in rung.steps.items()}, "seconds": 70.0, "evaluated": True}
    (workdir / "run.json").write_text(json.dumps(facts))
    shapes = {"all": 1 - 1 / rung.compute, "prompts": 8, "stage": "videos"}
    held_out = {"heldout": {"loss": loss_of(rung), "stderr": 0.01}, "shapes": shapes}
    (workdir / "evaluation.json").write_text(json.dumps({**held_out, **judged}))


def test_every_width_has_every_budget_with_as_many_steps_as_it_pays_for(study, rungs):
    assert [(rung.compute, rung.width, rung.seed) for rung in rungs[:5]] == [
        (4, 8, 0),
        (4, 8, 3),
        (4, 16, 0),
        (4, 16, 3),
        (8, 8, 0),
    ]
    assert len(rungs) == len({rung.child.name for rung in rungs}) == 16
    unit = rungs[0].flops / 4
    for rung in rungs:
        assert rung.flops == pytest.approx(rung.compute * unit, rel=0.05), "whole steps"
    narrow, wide = rungs[0], rungs[2]
    assert narrow.steps["videos"] > wide.steps["videos"]
    for rung in (narrow, wide):
        assert rung.steps["videos"] / rung.steps["images"] == pytest.approx(8 / 6, rel=0.05), "as in the config"


def test_a_rung_is_a_config_of_its_shape_and_schedule_that_takes_what_is_shared(study, rungs):
    settings = study.settings(rungs[-1].child)
    shape = settings.transformer
    assert (shape.width, shape.depth, shape.heads, shape.mlp_width, settings.seed) == (16, 2, 2, 16, 3)
    assert study.settings(rungs[0].child).transformer.heads == 1, "heads stay as wide"
    stage = study.config(rungs[-1].child).stages.videos
    assert (stage.steps, stage.schedule.warmup_steps) == (rungs[-1].steps["videos"], rungs[-1].steps["videos"] // 2)
    assert settings.autoencoder_start_from == str(study.folder / "shared")


def test_the_ladder_that_comes_with_the_package_stands():
    shipped = Study(folder=ROOT / "runs", file=str(ROOT / "configs" / "scaling.py"), given={})
    rungs = ladder(shipped)[1]
    assert len(rungs) == 4 * 5 * 3
    assert {rung.compute for rung in rungs} == {1, 2, 4, 8, 16}
    assert min(rung.steps["videos"] for rung in rungs) >= 80
    one = shipped.settings(rungs[0].child)
    other = shipped.settings(rungs[1].child)
    worlds = [settings.shapes.world(seed=settings.seed, split="heldout") for settings in (one, other)]
    assert one.seed != other.seed
    assert worlds[0] == worlds[1], "all are judged on the same clips"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scaling.widths": (8, 20)}, r"scaling.widths 20 is no multiple of 8, the width of a head"),
        ({"scaling.compute": (0.5, 1.0, 32.0)}, r"a budget of 0.5 pays for \d steps of images at width 8"),
        ({"scaling.depths": (1,)}, r"2 widths and 1 depths: give one depth for each width"),
        ({"scaling.compute": (4.0, 2.0, 8.0)}, r"must be three budgets or more, rising, of more than 0"),
        ({"scaling.held_back": 8.0}, r"held_back 8 of the budgets .*: leave two or more below it"),
        ({"run": ("autoencoder", "prepare")}, r"the run autoencoder, prepare trains no transformer: a study"),
        ({"scaling.seeds": (1, 1)}, r"seeds \(1, 1\): give each once"),
    ],
)
def test_a_ladder_that_cannot_stand_is_refused(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        ladder(Study(folder=tmp_path, file=TOY, given={**GIVEN, "scaling.held_back": 32.0, **changes}))


def test_a_run_is_listed_with_what_it_took(study, rungs):
    rung = rungs[-1]
    finish(study, rung)
    (run,) = results_of(study, [rung])
    steps = sum(2 * steps - 3 for steps in rung.steps.values())
    assert (run["tokens"], run["flops"]) == (pytest.approx(50 * steps), pytest.approx(1e8 * steps))
    assert (run["loss"], run["stderr"], run["seconds"], run["held_back"]) == (loss_of(rung), 0.01, 70.0, True)
    assert run["scores"] == {"all": 1 - 1 / 32}
    assert 16**2 * 2 * 10 < run["parameters"] < 16**2 * 2 * 100


def test_a_run_that_was_not_judged_on_held_out_clips_is_refused(study, rungs):
    finish(study, rungs[0], heldout={})
    with pytest.raises(UserError, match=r"w8-c4-s0 has no held-out loss.*data\.heldout_share"):
        results_of(study, rungs[:1])


def test_runs_that_were_judged_on_other_clips_are_refused(study, rungs):
    finish(study, rungs[0], heldout={"loss": 1.0, "clips": 64})
    finish(study, rungs[1], heldout={"loss": 1.0, "clips": 128})
    with pytest.raises(UserError, match=rf"{rungs[1].child.name} was judged on 128 .* on 64: judge one of them anew"):
        results_of(study, rungs[:2])


def test_a_run_whose_lines_end_early_is_refused(study, rungs):
    finish(study, rungs[0])
    path = study.workdir(rungs[0].child).path / "metrics.jsonl"
    path.write_text("".join(line for line in path.open() if f'"step": {rungs[0].steps["videos"]}' not in line))
    with pytest.raises(UserError, match=rf"of videos up to step 3 of {rungs[0].steps['videos']}, .*put back a copy"):
        results_of(study, rungs[:1])


def test_a_study_is_written_whole(study, rungs, monkeypatch, capsys):
    monkeypatch.setattr(budgets, "_DRAWS", 8)
    for rung in rungs:
        finish(study, rung)
    result = write_study(study, rungs, missing=0)
    assert json.loads((study.folder / "scaling.json").read_text()) == json.loads(json.dumps(result))
    assert [best["width"] for best in result["best"]] == [16] * 4
    assert [one["all"] for one in result["scores"]] == [1 - 1 / rung.compute for rung in rungs[::4]]
    assert (result["monotone"], result["scores_monotone"], result["missing"]) == (True, True, 0)
    assert len(result["runs"]) == 16
    assert result["predicted"][0]["compute"] == 32
    said = capsys.readouterr().out
    assert "predicted for the best width by the law of size at 32x" in said
    assert f"report: {study.folder}/scaling.html" in said
    assert "too few" not in said

    text = (study.folder / "scaling.html").read_text()
    page = Page(text)
    assert page.headings == [
        "More compute, the same seeds",
        "Held-out loss",
        "Predicted before, measured after",
        "Scores",
        "What is best for a budget",
        "What would falsify it",
        "Runs",
    ]
    assert len(page.images) == 4, "a column for each budget"
    assert (EVIL in page.words, EVIL in text) == (True, False)
    assert "4x compute, width 16" in page.words
    assert result["falsified_by"] in page.words
    assert "script" not in page.tags


def test_a_loss_below_the_floor_is_said_to_be(study, rungs, monkeypatch, capsys):
    monkeypatch.setattr(budgets, "_DRAWS", 2)
    for rung in rungs:
        finish(study, rung, **({"heldout": {"loss": 0.01}} if rung.compute == 32 else {}))
    write_study(study, rungs, missing=0)
    assert "measured 0.0100, below the floor of the law" in capsys.readouterr().out
    assert "below the floor" in Page((study.folder / "scaling.html").read_text()).words


def test_a_study_that_is_not_done_is_written_as_far_as_it_is(study, rungs, monkeypatch, capsys):
    monkeypatch.setattr(budgets, "_DRAWS", 2)
    for rung in rungs[:3]:
        finish(study, rung)
    result = write_study(study, rungs[:3], missing=13)
    assert (result["law"], result["predicted"], result["falsified_by"]) == ({"compute": None, "size": None}, [], None)
    assert "too few budgets and widths for a law of compute and of size\n" in capsys.readouterr().out
    page = Page((study.folder / "scaling.html").read_text())
    assert "3 runs, 13 are missing" in page.words
    assert "What would falsify it" not in page.headings
