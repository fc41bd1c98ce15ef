"""One table says what is measured, and whatever tells of metrics takes it from there."""

import json
from pathlib import Path

import numpy as np
import pytest

from sora_jax.core.metric_table import METRICS, metric_of, page_table, scores_in, with_weights
from sora_jax.data.sources.shapes_prompts import heldout_prompts
from sora_jax.evaluation import shapes_oracle
from sora_jax.evaluation.reconstruction import CLIP_METRICS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {part: "evaluation" for part in ("autoencoder", "prompts", "control", "distribution")} | {
    "captions": "captions"
}


@pytest.mark.parametrize(("part", "page"), PAGES.items())
def test_the_page_has_the_table(part, page):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert page_table(part) in text, f"docs/{page}.md must have:\n{page_table(part)}"


def test_a_name_is_found_and_what_stands_for_a_network_too():
    assert metric_of("psnr").unit == "dB"
    assert metric_of("fvd_random").name == "fvd_random"
    assert metric_of("fvd_i3d").name == "fvd_*"
    assert metric_of("drift_20").title == "drift over N frames"
    assert metric_of("nothing") is None
    assert len({one.name for one in METRICS}) == len(METRICS)


def test_everything_that_is_measured_has_a_row():
    judged = shapes_oracle.score(heldout_prompts(1), [np.zeros((5, 16, 16, 3), np.uint8)])
    names = [*CLIP_METRICS, *(name for name in judged if name != "prompts")]
    assert {"psnr", "clean"} <= set(names)
    assert [name for name in names if metric_of(name) is None] == []


def test_options_name_what_they_are_for():
    assert with_weights("image_features") == "fid_NETWORK, kid_NETWORK"
    assert with_weights("text_features") == "clip_similarity"


def test_scores_are_what_has_a_value():
    facts = json.loads('{"clips": 3, "fid_random": {"value": 1.0, "low": 0.5, "high": 1.5}, "sizes": ["9x8x8: 3"]}')
    assert [name for name, _ in scores_in(facts)] == ["fid_random"]
