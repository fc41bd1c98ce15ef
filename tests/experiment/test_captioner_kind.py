"""The kind of stage that trains a captioner: what it refuses, and a whole run of it as a user has it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import sora_jax
from sora_jax.core.errors import UserError
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.experiment.expansion import expand_requests
from sora_jax.experiment.kinds import KINDS
from sora_jax.experiment.settings import read_settings
from sora_jax.generate.request import Request
from sora_jax.train.metrics import read_metrics
from tests.toy_captions import get_config


def test_it_writes_bytes_and_knows_its_collections():
    config = get_config()
    config.stages.caption_images.mix.collections = {"other": 1.0}
    with pytest.raises(UserError, match=r"stages.caption_images.mix.collections names other; there are main"):
        read_settings(config)


def test_heads_are_split_evenly():
    settings = read_settings(get_config())
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=1, tensor=4), jax.devices()[:4])
    with pytest.raises(UserError, match=r"captioner.heads is 2, and the mesh axis tensor splits them over 4"):
        KINDS["captioner"].check(settings, "caption_images", mesh)


def test_more_clips_cost_more():
    settings = read_settings(get_config())
    (short,) = KINDS["captioner"].batches(settings, "caption_images", segment_tokens=4)
    (long,) = KINDS["captioner"].batches(settings, "caption_images", segment_tokens=36)
    assert 0 < long.flops < short.flops, "one caption a row instead of nine"
    assert short.recomputed == 0
    again = dataclasses.replace(settings, captioner=dataclasses.replace(settings.captioner, remat="full"))
    (full,) = KINDS["captioner"].batches(again, "caption_images", segment_tokens=4)
    assert full.flops == short.flops, "what is computed again is no work"
    assert 0 < full.recomputed < full.flops / 3
    assert short.shapes["text_BKQ"].shape == (8, 96, 8)


@pytest.mark.slow
def test_a_run_trains_shows_and_judges_a_captioner(python, toy_workdir, tmp_path):
    workdir = tmp_path / "captions"
    asked = ("-m", "sora_jax.main", "--config=tests/toy_captions.py", f"--workdir={workdir}")
    given = (
        f"--config.autoencoder.start_from={toy_workdir}",
        f"--config.stages.prepare.start_from={toy_workdir}",
        "--config.captioner_loss.expand_share=0.3",
    )
    stopped = python(*asked, *given, "--config.stages.caption_videos.steps=2", "--config.log.validate_every=1")
    assert stopped.returncode == 0, stopped.stderr
    lines = [line for line in read_metrics(workdir) if line["stage"] == "caption_videos"]
    assert np.isfinite(
        [line[name] for line in lines if "loss" in line for name in ("caption", "contrastive", "tokens_right")]
    ).all()
    assert [line["step"] for line in lines if "heldout_loss" in line] == [1, 2]
    said = json.loads((workdir / "samples" / "caption_videos" / "prompts.json").read_text())
    assert all("its own caption: a " in text for text in said.values())
    assert said
    scores = json.loads((workdir / "evaluation.json").read_text())["captions"]
    assert {"precision", "recall", "hallucinated", "exact", "retrieval_r1", "cider", "bleu4", "reversed"} <= {*scores}
    run = sora_jax.open_run(shutil.copytree(workdir, tmp_path / "copy"))
    clips = [np.zeros((frames, 16, 16, 3), np.uint8) for frames in (1, 5)]
    assert len(run.describe(clips, fps=8.0)) == 2
    # It has hardly learnt anything, so what it writes says nothing of the prompt.
    asked = [Request(prompt=("a red circle",))]
    generator = sora_jax.open_run(shutil.copytree(toy_workdir, tmp_path / "generator"))
    assert expand_requests(generator, asked, str(workdir))[0].shown == ("a red circle",)
    found = generator.evaluate("expand", captioner=str(workdir), clips=2)["expand"]
    assert (found["prompts"], found["kept"], found["fallback"], found["spread"]) == (4, 1, 1, [])
    assert found["terse_following"] == found["unexpanded_following"]
    evaluation = tmp_path / "generator" / "samples" / "evaluation"
    assert json.loads((evaluation / "expand.json").read_text()) == found
    assert len((evaluation / "expand.txt").read_text().splitlines()) == 5
    with pytest.raises(UserError, match="has no checkpoint of a captioner"):
        sora_jax.open_run(toy_workdir).describe(clips[:1])
