"""A run with a frozen T5 from a folder: prepared once, stopped, trained and sampled; its recipe refuses by name.

Rows have the shapes of those in `test_text_encoder.py`, so no step is compiled that is not compiled there.
"""

import json

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment.run import run
from sora_jax.models.text import build_encoder, frozen
from sora_jax.models.text.network import Network
from sora_jax.train.metrics import read_metrics
from sora_jax.train.workdir import Workdir
from tests.small_encoder import text_config, write_t5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("encoders") / "t5", each=False)


@pytest.fixture(scope="module")
def config(folder, toy_config, toy_workdir):
    config = toy_config()
    config.text.encoder, config.text.weights = "t5", str(folder)
    config.autoencoder.start_from = str(toy_workdir)
    config.run = ("prepare", "videos")
    config.shapes.num_clips, config.shapes.sides = 32, ((16, 16),)
    config.packing.window = 16
    config.stages.videos.steps = 4
    config.log.samples_per_stage = 1
    config.sampling.prompts = ("a red circle",)
    config.diffusion.caption_dropout = 0.5
    config.optimizer.name, config.sampling.solver = "adamw", "euler"  # they compile faster
    return config


@pytest.fixture(scope="module")
def loads():
    """Returns how often the network was read from its files, and what it was asked for each time."""
    return []


@pytest.fixture(scope="module")
def workdir(config, loads, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "t5"

    class Counted(Network):
        def __init__(self, weights):
            super().__init__(weights)
            self.asked = 0
            loads.append(self)

        def states(self, texts, *, positions):
            self.asked += len(texts)
            return super().states(texts, positions=positions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "Network", Counted)
        run(config, path, until="prepare")
        run(config, path, until="diffusion")
    return Workdir(path)


def test_states_are_computed_once_and_the_network_goes_before_training(workdir, loads):
    prepared = PreparedSet(workdir.prepared())
    captions = {caption for number in range(len(prepared)) for caption in prepared[number].captions}
    assert [one.asked for one in loads] == [len(captions | {""}), 2]
    assert prepared.header["text_encoder"].startswith("t5 ")
    assert prepared.header["cleaning"] == "plain, version 1"
    assert prepared.header["tokenizer"].startswith("tokenizer.json ")
    assert prepared.header["text_tokens"] == "24 at most"
    assert prepared.empty_text is not None
    assert prepared.empty_text["text_BKE"].shape == (1, 16)


def test_what_was_stopped_after_preparing_trains_and_samples(workdir):
    lines = [line for line in read_metrics(workdir.path) if line.get("stage") == "videos" and "loss" in line]
    assert lines
    assert np.isfinite([line["loss"] for line in lines]).all()
    (clip,) = (workdir.path / "samples/videos/000004").glob("*.gif")
    assert read_clip(clip)[0].shape == (5, 16, 16, 3)


def test_another_encoder_or_length_is_refused_by_name(workdir, config, folder, tmp_path):
    other = write_t5(tmp_path / "other", each=False, seed=1)
    tree = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(tree, indent=1))
    config = config.copy_and_resolve_references()
    config.run = ("prepare", "videos", "images")
    config.text.weights = str(other)
    with pytest.raises(UserError, match=r"the text encoder changed from t5 \w+ .* to t5 \w+ .*; the tokenizer changed"):
        run(config, workdir.path, until="diffusion")
    header = PreparedSet(workdir.prepared()).header
    shorter = build_encoder(text_config("t5", folder, max_tokens=12)).tokenizer.recipe
    said = "the length of texts changed from 24 at most to 12 at most: prepare into a new directory"
    with pytest.raises(UserError, match=said):
        PreparedSet.open([workdir.prepared()], shorter)
    assert {key: header[key] for key in shorter if key != "text_tokens"} == {
        key: value for key, value in shorter.items() if key != "text_tokens"
    }
