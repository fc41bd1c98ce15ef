"""The two runs of a study of framing, and what is written of samples whose cuts are known."""

import json

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.sources.shapes_world import PALETTE
from sora_jax.experiment import framing
from sora_jax.experiment.children import Study, run_children
from sora_jax.experiment.framing import framing_runs, write_framing
from tests.conftest import TOY
from tests.reports.test_run_page import Page


class Painted:
    """Stands for the models of a run: its samples are squares, whole, or cut by the left edge in the run `square`."""

    def __init__(self, workdir, settings):
        self.workdir, self.settings, self.params = workdir, settings, {}
        self.calls = 0

    def facts(self):
        return {"stage": "videos", "step": 8, "weights": "ema"}

    def sampler(self):
        cut = 6 if self.settings.data.square_crop else 0

        def sample(params, canvases):
            self.calls += 1
            clips = []
            for canvas in canvases:
                _, height, width = canvas.grid
                clip = np.full((5, 8 * height, 8 * width, 3), 120, np.uint8)
                clip[:, 4:13, max(0, 4 - cut) : 13 - cut] = PALETTE["red"]
                clips.append(clip)
            return clips

        return sample


@pytest.fixture
def study(tmp_path):
    return Study(folder=tmp_path / "<study>", file=TOY, given={"evaluation.prompts": 3})


@pytest.fixture
def painted(study, monkeypatch):
    """The study with its samples painted; returns what stands for the models, one for each time they are opened."""
    opened = []

    def open_models(workdir, settings):
        opened.append(Painted(workdir, settings))
        return opened[-1]

    monkeypatch.setattr(framing, "RunModels", open_models)
    monkeypatch.setattr(framing, "_CALIBRATED_ON", 4)
    for child in framing_runs(study)[1]:
        folder = study.workdir(child).path
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"stages": {}, "seconds": 70.0}))
    return opened


def test_two_runs_differ_in_square_crops_alone(study):
    (first,), runs = framing_runs(study)
    assert (first.name, [child.name for child in runs]) == ("shared", ["native", "square"])
    native, square = (study.config(child).to_dict() for child in runs)
    assert (native["data"].pop("square_crop"), square["data"].pop("square_crop")) == (False, True)
    assert native == square
    assert native["autoencoder"]["start_from"] == str(study.folder / "shared")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data.source": "folder", "data.path": "clips"}, "the plain drawn world alone"),
        ({"shapes.sides": ((16, 16), (24, 24))}, "are all square"),
        ({"evaluation.prompts": 0}, "evaluation.prompts of 1 or more"),
    ],
)
def test_a_config_whose_framing_cannot_be_judged_is_refused(tmp_path, given, said):
    with pytest.raises(UserError, match=said):
        framing_runs(Study(folder=tmp_path, file=TOY, given=given))


def test_further_worlds_are_refused(tmp_path):
    with pytest.raises(UserError, match="the plain drawn world alone"):
        framing_runs(Study(folder=tmp_path, file="configs/worlds.py", given={}))


def test_what_is_cut_is_told_with_its_gap_and_shown_in_pairs(study, painted, capsys):
    result = write_framing(study, draws=2)
    assert json.loads((study.folder / "framing.json").read_text()) == result
    assert (result["native"]["whole"], result["square"]["whole"], result["gap"]) == (1.0, 0.0, 1.0)
    assert (result["native"]["read"], result["native"]["samples"], result["pairs"]) == (1.0, 6, 6)
    assert result["native"]["in_view"] == pytest.approx(1.0, abs=0.02)
    assert result["square"]["in_view"] == pytest.approx(7 / 9, abs=0.08), "two of nine columns are cut off"
    assert result["square"]["margin"] < -0.3 < 0.3 < result["native"]["margin"]
    # Of three prompts, all signs are alike in 2 of 8 ways.
    assert result["p"] == pytest.approx(2 / 8, abs=0.02)
    assert list(result["by_size"]) == ["16x24", "16x16"], "what crops change, and what they leave"
    assert result["calibration"]["clips"] == 8
    assert "16x24: native whole in 100.0%" in capsys.readouterr().out

    text = (study.folder / "framing.html").read_text()
    page = Page(text)
    assert page.headings == [
        "Is the subject whole",
        "Pairs at 16x24",
        "Pairs at 16x16",
        "How good the measure is",
        "Runs",
    ]
    assert len(page.images) == 2 * 2 * 3
    assert "whole in 100.0% of the samples of native sizes and in 0.0% of those of square crops" in page.words
    assert f"a gap of 1.000, p {result['p']:.1g}, not more than chance may do" in page.words
    assert ("<study>" in page.words, "<study>" in text) == (True, False)
    assert "script" not in page.tags


def test_samples_are_made_once_and_anew_for_others(study, painted):
    first = write_framing(study, draws=1)
    assert [one.calls for one in painted] == [2, 2]
    assert write_framing(study, draws=1) == first
    assert [one.calls for one in painted[2:]] == [0, 0]
    assert write_framing(study, draws=2)["native"]["samples"] == 6
    assert [one.calls for one in painted[4:]] == [2, 2]


def test_pictures_of_prompts_that_are_no_more_judged_are_gone(study, painted):
    write_framing(study, draws=1)
    write_framing(Study(folder=study.folder, file=TOY, given={"evaluation.prompts": 1}), draws=1)
    page = Page((study.folder / "framing.html").read_text())
    assert len(page.images) == 2 * 2 * 1
    assert "its words are not recorded" not in page.words


@pytest.mark.slow
def test_a_study_is_made_from_its_config_to_its_page(tmp_path):
    study = Study(folder=tmp_path, file=TOY, given={"evaluation.prompts": 4})
    first, runs = framing_runs(study)
    run_children(study, [*first, *runs])
    result = write_framing(study, draws=1)
    assert result["native"]["samples"] == result["square"]["samples"] == 4
    assert {name: run["stage"] for name, run in result["runs"].items()} == {"native": "videos", "square": "videos"}
    assert "Pairs at 16x24" in Page((tmp_path / "framing.html").read_text()).headings
