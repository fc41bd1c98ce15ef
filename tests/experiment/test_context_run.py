"""Whole runs with clips beside: that being killed leaves the same bits, and that adapters learn what roles are."""

import types
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

import sora_jax
from sora_jax.core.errors import UserError
from sora_jax.data.packing.context import Lacking
from sora_jax.data.shards.prepared import PreparedSet
from sora_jax.experiment.exporting import export_lora
from sora_jax.experiment.kinds.prepare import warn_of_left_out
from sora_jax.experiment.run import run
from sora_jax.experiment.session import open_session
from sora_jax.experiment.settings import read_settings
from sora_jax.models.interop.lora import ROLES_KEY
from sora_jax.models.roles import VECTORS
from sora_jax.video.parts import ROLES
from tests.experiment.test_run import DRIVER, state
from tests.public_model import adapter_config, write_diffusers

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

CONFIG = "tests/toy_context.py"
NAME = f"transformer.{VECTORS}"


@pytest.mark.slow
def test_a_run_with_clips_beside_that_is_killed_ends_with_the_same_bits(python, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = python("-m", "sora_jax.main", f"--config={CONFIG}", f"--workdir={whole}", fresh=True)
    assert done.returncode == 0, done.stderr
    first = python(DRIVER, CONFIG, killed, "prepare:32:SIGTERM", "videos:5:SIGKILL")
    assert first.returncode == -9, first.stderr
    second = python(DRIVER, CONFIG, killed)
    assert second.returncode == 0, second.stderr
    sets = [PreparedSet(workdir / "prepared") for workdir in (whole, killed)]
    assert sets[0].fingerprint() == sets[1].fingerprint()
    expected, got = state(whole, "videos"), state(killed, "videos")
    assert got.keys() == expected.keys()
    moments = [name for name in expected if name.startswith("/opt_state") and VECTORS in name]
    assert moments, "of the vectors of roles there are moments"
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    assert all(expected[name].any() for name in moments)


def test_who_trains_without_context_is_said_once(caplog):
    lacking = Lacking(missing={"boxes": 3}, long=2, longest=192, room=126, of=96)
    rows = types.SimpleNamespace(left_out=dict, without_context=lambda: lacking)
    stream: Any = types.SimpleNamespace(rows=rows)
    warn_of_left_out("videos", stream)
    assert caplog.messages == [
        "videos: 3 of 96 clips have no boxes, and train without it",
        "videos: 2 of 96 clips fit no row with all that may be beside them, and then train without: "
        "they need up to 192 tokens and a row has 126; raise packing.tokens",
    ]


def adapting(config, folder):
    """Returns a config that trains adapters of a public model with greys beside."""
    config = adapter_config(config, f"{folder}#t2v_1_3b", {"videos": None}, steps=3)
    config.context.kinds, config.stages.videos.context = ("grey",), ConfigDict({"none": 0.2, "grey": 0.8})
    return config


def test_stages_of_adapters_train_the_vectors_of_roles_where_there_are_clips_beside(toy_config, tmp_path):
    config = toy_config()
    config.transformer.lora.rank, config.run = 2, ("prepare", "videos")
    config.autoencoder.start_from = "runs/other"
    config.stages.videos.start_from = "runs/other/checkpoints/videos"
    config.context.kinds, config.stages.videos.context = ("grey",), ConfigDict({"grey": 1.0})
    assert read_settings(config).stages["videos"].trainable == r".*\.lora_[ab]|transformer\.roles\.vectors"


@pytest.mark.slow
def test_adapters_of_a_frozen_public_model_learn_roles_and_take_them_along(toy_config, tmp_path):
    folder = write_diffusers(tmp_path / "tiny", (5,))
    run(adapting(toy_config(), folder), tmp_path / "run", until="diffusion")
    session = open_session(tmp_path / "run")
    roles = np.asarray(session.models.params[NAME])
    taught = [number for number in range(len(roles)) if roles[number].any()]
    assert taught == [ROLES["grey"]]
    (file,) = export_lora(session.models.workdir, session.settings, str(tmp_path / "out"), dtype="float32")
    np.testing.assert_array_equal(load_file(file)[ROLES_KEY], roles)
    # In the place of its own: the same again, and halfway at half the weight.
    for weight in (1.0, 0.5):
        again = open_session(tmp_path / "run", lora={"own": 0, str(file): weight}).models.params
        np.testing.assert_allclose(again[NAME], roles, atol=1e-7)
    video = np.zeros((5, *session.settings.sampling.size, 3), np.uint8)
    options = {"control": "grey", "control_video": video, "frames": 5, "steps": 2}
    (clip,) = session.sample("a red circle moves right", **options)
    assert clip.shape == video.shape
    other = sora_jax.open_model(f"{folder}#t2v_1_3b", lora={str(file): 1.0}, devices=jax.devices()[:1])
    with pytest.raises(UserError, match=r"trained with clips beside.*and this model was made without context\.kinds"):
        _ = other.models.params
