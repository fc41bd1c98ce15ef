"""The benchmark of the train step: the contestants do the same, and the figures say what was measured."""

import dataclasses
import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.benchmarks import train_step
from sora_jax.benchmarks.clip_mix import Arrangement, ClipLayout, bucketed, draw_clips
from sora_jax.benchmarks.kernels import kernels_of
from sora_jax.benchmarks.our_step import OurStep, random_params
from sora_jax.benchmarks.torch_step import TorchStep, TorchWan
from sora_jax.core.errors import UserError
from sora_jax.models.flops import transformer_flops

LAYOUT = ClipLayout(patch_width=8, text_dim=12, text_tokens=3, side_scale=1)
TINY = train_step.Comparison(
    config=dataclasses.replace(train_step.transformer_config(24, 2, 2, remat="none"), frequency_dim=16),
    layout=LAYOUT,
    row_tokens=512,
    rows=1,
    clips=3,
    rounds=1,
    compiled=False,
)
# One block of two clips, where nothing depends on their number: fewer and smaller programs.
SHALLOW = dataclasses.replace(TINY, config=dataclasses.replace(TINY.config, depth=1), clips=2)
NAMES = [name for name in train_step.CONTESTANTS if name.startswith("ours")]


@pytest.fixture(scope="module")
def params():
    return random_params(TINY.config, LAYOUT)


@pytest.fixture(scope="module")
def step(params):
    return OurStep(TINY.config, LAYOUT, params, dtype=jnp.dtype(jnp.float32))


def first_losses(step, arrangement):
    """Returns the losses of one pass from the first weights on."""
    step.reset()
    return step.train([step.put(batch) for batch in arrangement.batches])


@pytest.mark.slow  # packed equals alone is asked of the model itself elsewhere
def test_the_arrangements_train_alike(step):
    """All clips are in one batch, so the loss is the same mean over the same tokens, and so is the second step's."""
    clips = draw_clips(2, LAYOUT, grids=((1, 6, 8), (1, 8, 9)))
    arranged = {
        "packed": train_step.packed(clips, row_tokens=128, rows=2, short_tail=False),
        "padded": train_step.padded_batches(clips, batch_tokens=256, short_tail=False),
    }
    assert all(len(arrangement.batches) == 1 for arrangement in arranged.values())
    twice = {how: Arrangement(batches=arrangement.batches * 2) for how, arrangement in arranged.items()}
    losses = {how: first_losses(step, arrangement) for how, arrangement in twice.items()}
    assert losses["packed"] == pytest.approx(losses["padded"], rel=1e-5)
    assert losses["packed"][1] < losses["packed"][0]


@pytest.mark.slow
def test_a_call_passes_over_all_batches_and_changes_the_weights():
    arrangement = train_step.arrange(SHALLOW, "packed", short_tail=False)
    params = random_params(SHALLOW.config, LAYOUT)
    call = train_step.contestants(SHALLOW, params, {"ours_packed": arrangement})["ours_packed"]
    first, second = call(), call()
    assert len(first) == len(second) == len(arrangement.batches)
    assert second < first


def values(figures):
    return {figure.name: figure.value for figure in figures}


def test_the_figures_have_the_published_names():
    rates = {name: 1.0 + number for number, name in enumerate(train_step.CONTESTANTS)}
    figures = train_step.ratio_figures(rates)
    targets = {figure.name: figure.target for figure in figures}
    assert targets == {
        "packed_over_padded": "at least 1.8",
        "packed_over_bucketed": "at least 1.1",
        "padded_ratio": "at least 1.4",
        "bucketed_ratio": "at least 0.8",
        "equal_shape_ratio": "at least 0.8",
        "packed_ratio": None,
    }
    assert values(figures)["equal_shape_ratio"] == rates["ours_equal"] / rates["torch_equal"]
    assert values(figures)["padded_ratio"] == rates["ours_packed"] / rates["torch_padded"]
    assert train_step.ratio_figures({"ours_packed": 1.0}) == []


def test_rates_are_those_of_real_tokens():
    arrangement = train_step.arrange(TINY, "padded", short_tail=False)
    found = values(train_step.contestant_figures(TINY, "ours_padded", arrangement, 2.0))
    tokens = sum(clip.tokens for clip in draw_clips(TINY.clips, LAYOUT))
    forward = transformer_flops(TINY.config, text_dim=12, patch_width=8, work=arrangement.work())
    assert found == pytest.approx(
        {
            "ours_padded_tokens_per_second": tokens / 2,
            "ours_padded_fill": arrangement.fill(),
            "ours_padded_gflops": 3 * forward / 2 / 1e9,
        }
    )


@pytest.mark.slow
def test_without_torch_ours_is_measured_and_said_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    measured = train_step.figures_of(dataclasses.replace(SHALLOW, profile=str(tmp_path)), [])
    assert all(kernels_of(tmp_path / name) for name in NAMES)
    assert "no torch here, so ours alone is measured: pip install -e" in capsys.readouterr().out
    found = values(measured)
    assert {"packed_over_padded", "packed_over_bucketed", "packed_over_full_buckets"} <= found.keys()
    assert {name.removesuffix("_fill") for name in found if name.endswith("_fill")} == set(NAMES)
    assert all(value > 0 for value in found.values())


def test_a_row_shorter_than_a_clip_is_refused():
    with pytest.raises(UserError, match=r"a clip has \d+ tokens, a row only 64: --row_tokens=\d+ or more"):
        train_step.arrange(dataclasses.replace(TINY, row_tokens=64), "packed", short_tail=False)


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("train_step", "--rows=0"),
        ("train_step", "--row_tokens=0"),
        ("autoencoder", "--peer_width=0"),
        ("autoencoder", "--clip_frames=0"),
    ],
)
def test_a_size_of_nothing_is_refused_at_once(python, name, flag):
    done = python("-m", f"sora_jax.benchmarks.{name}", flag)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"flag {flag}: 0 is not" in done.stderr


def test_an_unknown_contestant_ends_in_a_sentence(python):
    done = python("-m", "sora_jax.benchmarks.train_step", "--contestants=ours_packed,theirs")
    assert done.returncode == 2
    assert "--contestants=theirs is none of ours_packed, ours_padded" in done.stderr


@pytest.mark.parity
@pytest.mark.parametrize("how", ["packed", "padded", "bucketed"])
def test_torch_takes_the_same_steps(step, params, how):
    """Over several optimizer steps the losses stay together: same weights, gradients, AdamW and clipping."""
    clips = draw_clips(5, LAYOUT, grids=((1, 6, 8), (1, 8, 9)))
    arrangement = {
        "packed": train_step.packed(clips, row_tokens=200, rows=1, short_tail=False),
        "padded": train_step.padded_batches(clips, batch_tokens=150, short_tail=True),
        "bucketed": bucketed(clips, batch_tokens=100, short_tail=True),
    }[how]
    arrangement = Arrangement(batches=arrangement.batches * 2)
    theirs = TorchStep(TINY.config, params, device="cpu", compiled=False)
    model = theirs.model(train_step._MASKING[how])
    found = theirs.train(theirs.loss_of(model), [model.put(batch) for batch in arrangement.batches])
    np.testing.assert_allclose(found, first_losses(step, arrangement), rtol=1e-4)
    assert found[-1] < found[0]


@pytest.mark.parity
def test_predictions_agree_within_1e_4(params):
    figure = train_step.difference_figure(TINY, params)
    assert 0 < figure.value < 1e-4
    assert figure.target == "at most 1e-4"


@pytest.mark.parity
def test_unfused_segments_hide_what_they_should(params):
    """A clip packed with another has in torch the prediction that it has alone."""
    clips = draw_clips(2, LAYOUT, grids=((1, 6, 8), (1, 8, 9)))
    row = train_step.packed(clips, row_tokens=128, rows=1, short_tail=True).batches[0]
    packed = TorchWan(TINY.config, device="cpu", masking="segments")
    alone = TorchWan(TINY.config, device="cpu", masking="none")
    weights = packed.weights(params)
    for clip in clips:
        one = bucketed([clip], batch_tokens=clip.tokens, short_tail=True).batches[0]
        expected_LP = alone.predict(weights, alone.put(one))[0].detach().numpy()
        (segment,) = {
            *row["segment_BL"][0][np.isclose(row["tokens_BLP"][0, :, :1], clip.tokens_LP[0, 0])[:, 0]].tolist()
        }
        found_LP = packed.predict(weights, packed.put(row))[0].detach().numpy()[row["segment_BL"][0] == segment]
        np.testing.assert_allclose(found_LP, expected_LP, atol=1e-5)


@pytest.mark.parity
def test_it_runs_as_a_user_runs_it(python, tmp_path):
    path = tmp_path / "train_step.json"
    done = python(
        "-m",
        "sora_jax.benchmarks.train_step",
        "--contestants=ours_packed,torch_padded",
        "--clips=4",
        "--rounds=1",
        "--row_tokens=512",
        f"--json={path}",
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert written["difference"] < 1e-4
    assert written["padded_ratio"] == pytest.approx(
        written["ours_packed_tokens_per_second"] / written["torch_padded_tokens_per_second"]
    )
    assert "largest difference of the predictions" in done.stdout
