"""The loop: what it writes, how it is stopped and goes on bit for bit, and when it gives up."""

import dataclasses
import functools
import gzip
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from sora_jax.checkpoints import leaves, manifest
from sora_jax.checkpoints.frozen import save_frozen
from sora_jax.checkpoints.reading import load_tree, saved_leaves
from sora_jax.checkpoints.retention import CheckpointConfig, find_steps, read_record
from sora_jax.core import debugging, stop
from sora_jax.core.ahead import Ahead
from sora_jax.core.errors import NumericsError, Preempted, StorageError, UserError
from sora_jax.core.mean import Mean
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.rng import Rngs
from sora_jax.core.stop import StopSignal
from sora_jax.core.tree import abstract_model
from sora_jax.nn.linear import Linear
from sora_jax.train import dump
from sora_jax.train.guard import ONLY_FINITE
from sora_jax.train.loop import RunContext, TrainJob, train
from sora_jax.train.metrics import MetricsWriter, read_metrics
from sora_jax.train.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
from sora_jax.train.progress import Part, RunProgress
from sora_jax.train.reporter import LogConfig
from sora_jax.train.snapshots import AVERAGES, find_snapshots
from sora_jax.train.state import EmaConfig, StateMaker
from sora_jax.train.step import StepConfig, make_step
from sora_jax.train.workdir import Workdir

STEPS = 9
MESH = make_mesh(MeshConfig(data=2, fsdp=2, sequence=1, tensor=1), jax.devices()[:4])


class Model(nnx.Module):
    def __init__(self, key):
        self.map = Linear(4, 4, axes=("embed", "mlp"), rngs=Rngs(key))


def objective(model, batch, key):
    noise = jax.random.normal(key, batch["x"].shape)
    return Mean.of(jnp.square(model.map(batch["x"]) + noise)), {"size": Mean.of(batch["x"])}


class Stream:
    """Numbered batches; `events` are called with a number before its batch is handed over."""

    def __init__(self, *, name="data", bad=(), wild=(), events=None):
        self.name, self.bad, self.wild, self.events = name, set(bad), set(wild), events or {}
        self.read, self.closed = [], 0

    def batches(self, start):
        stream = self

        class Batches:
            number = start

            def __iter__(self):
                return self

            def __next__(self):
                stream.read.append(self.number)
                stream.events.get(self.number, lambda: None)()
                x = np.random.default_rng(self.number).normal(size=(8, 4)).astype(np.float32)
                x[0, 0] = np.nan if self.number in stream.bad else x[0, 0]
                x *= 100 if self.number in stream.wild else 1
                self.number += 1
                return {"x": x}

            def close(self):
                stream.closed += 1

        return Batches()

    def fingerprint(self):
        return {"data": self.name}

    def names(self, number):
        return [f"clip {number}"]

    def tokens(self, batch):
        return 24, 32

    def flops(self, batch):
        return 1e9


class Show:
    def __init__(self, workdir):
        self.workdir, self.steps = workdir, []

    def __call__(self, state, step):
        self.steps.append(step)
        self.workdir.samples("videos", step).mkdir(parents=True, exist_ok=True)


@functools.cache
def maker(trainable=None):
    config = OptimizerConfig(name="muon", b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
    make = functools.partial(make_optimizer, config)
    return StateMaker(
        build=Model,
        make_optimizer=make,
        ema=EmaConfig(widths=(0.1, 0.2), snapshots=None),
        mesh=MESH,
        trainable=trainable,
    )


@functools.cache
def fresh(trainable):
    return maker(trainable).fresh(jax.random.key(0))


STEPS_MADE = {}


def made_once(trainable, config):
    """Returns the step; runs that train the same by equal steps share a program."""
    key = (trainable, config, debugging.is_on())
    if key not in STEPS_MADE:
        structure, _, axes = abstract_model(maker(trainable).build)
        STEPS_MADE[key] = make_step(objective, structure, maker(trainable).optimizer(axes), config)
    return STEPS_MADE[key]


def run(
    path,
    stream,
    *,
    every=4,
    keep=2,
    samples=3,
    log_every=2,
    fresh_data=False,
    trainable=None,
    profile=None,
    snapshots=None,
    validate=None,
    initial=None,
    **guard,
):
    """Trains in the workdir `path`; returns the final state, the facts, and the steps that were shown."""
    with Workdir(path) as workdir:
        workdir.claim(ConfigDict({"seed": 0}))
        show = Show(workdir)
        schedule = ScheduleConfig(learning_rate=0.1, warmup_steps=2, decay_share=0.5, final_share=0.1)
        guarded = dataclasses.replace(ONLY_FINITE, **{"max_skipped_steps": 3, **guard})
        step = StepConfig(
            name="videos",
            seed=0,
            steps=STEPS,
            accumulate=1,
            schedule=schedule,
            ema=dataclasses.replace(maker().ema, snapshots=snapshots),
            guard=guarded,
        )
        job = TrainJob(
            program=made_once(trainable, step),
            maker=maker(trainable),
            initial=initial or (lambda: jax.tree.map(jnp.copy, fresh(trainable))),
            step=step,
            stream=stream,
            show=show,
            validate=lambda state: {"heldout_loss": float(state.step)},
        )
        progress = RunProgress([Part(name="videos", total=STEPS, unit="steps", each=1.0, once=0.0)])
        progress.begin("videos")
        with MetricsWriter(path) as metrics, StopSignal() as asked:
            context = RunContext(
                workdir=workdir,
                metrics=metrics,
                checkpoint=CheckpointConfig(
                    every_steps=every,
                    every_minutes=None,
                    keep=keep,
                    keep_best=0,
                    keep_every_steps=None,
                    keep_every_hours=None,
                ),
                log=LogConfig(
                    every_steps=log_every, samples_per_stage=samples, validate_every=validate, profile_steps=profile
                ),
                stop=asked,
                progress=progress,
                ahead=Ahead(),
                fresh_data=fresh_data,
            )
            state, facts = train(job, context)
    return state, facts, show.steps


def saved_steps(path):
    return sorted(find_steps(epath.Path(path) / "checkpoints" / "videos"))


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """A signal is meant for the run alone, however slow the machine is."""
    monkeypatch.setattr(stop, "PATIENCE", 900.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped: (workdir, state, facts, steps shown, stream)."""
    path, stream = tmp_path_factory.mktemp("whole"), Stream()
    return path, *run(path, stream), stream


def test_every_batch_is_trained_on_once_and_the_reading_ends(whole):
    _, state, facts, shown, stream = whole
    assert stream.read == list(range(STEPS))
    assert stream.closed == 1
    assert int(state.step) == STEPS
    assert shown == [3, 6, 9]
    assert facts["steps"] == STEPS
    assert facts["fill"] == 0.75
    assert {"compile_seconds", "tokens_per_second", "data_wait", "peak_memory_gb"} <= facts.keys()


def test_checkpoints_come_every_so_often_and_at_the_end_and_old_ones_go(whole):
    assert saved_steps(whole[0]) == [8, 9]


def test_a_checkpoint_notes_the_mean_loss_since_the_one_before(tmp_path):
    stream = Stream(bad=[5], events={6: terminate})
    with pytest.raises(Preempted):
        run(tmp_path, stream, keep=9, log_every=1, samples=0)
    run(tmp_path, Stream(), keep=9, log_every=1, samples=0)
    losses = {line["step"]: line["loss"] for line in read_metrics(tmp_path)}
    spans = {4: (1, 2, 3, 4), 7: (5, 7), 8: (8,), 9: (9,)}
    assert saved_steps(tmp_path) == list(spans)
    for step, of in spans.items():
        record = read_record(epath.Path(tmp_path / "checkpoints" / "videos" / str(step)))
        assert record is not None
        assert record.loss == pytest.approx(np.mean([losses[one] for one in of]), rel=1e-6)


def test_a_disk_without_room_is_told_before_anything_is_made(tmp_path, monkeypatch):
    def initial():
        raise AssertionError("a state was made")

    stream = Stream()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("usage", (), {"free": 100}))
    with pytest.raises(StorageError, match=r"0\.0001 MB free, and 3 more checkpoints of .* MB: free"):
        run(tmp_path, stream, initial=initial)
    assert stream.read == []


def test_a_last_save_that_fails_is_tried_again_before_the_run_stops(whole, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("sora_jax.checkpoints.checkpoint._PAUSES", (0.0, 0.0))
    write, failures = manifest.write_manifest, [OSError(28, "No space left on device")] * 2

    def flaky(*args, **kwargs):
        if failures:
            raise failures.pop()
        write(*args, **kwargs)

    monkeypatch.setattr(manifest, "write_manifest", flaky)
    with pytest.raises(Preempted, match="step 2 of videos is saved"):
        run(tmp_path, Stream(events={1: terminate}))
    assert sum("step 2 was not saved" in line for line in caplog.messages) == 2
    state, _, _ = run(tmp_path, Stream())
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])


def test_lines_of_metrics_are_means_since_the_last(whole, tmp_path):
    lines = read_metrics(whole[0])
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 9]
    run(tmp_path, Stream(), log_every=1)
    single = read_metrics(tmp_path)
    assert [line["step"] for line in single] == list(range(1, STEPS + 1))
    for line in lines + single:
        assert line["stage"] == "videos"
        for name in ("loss", "gradient_norm", "learning_rate", "size", "tokens_per_second", "fill", "peak_memory_gb"):
            assert isinstance(line[name], float), name
        assert line["fill"] == 0.75
        assert line["flops_per_second"] > 0
    for number, line in enumerate(lines[:-1]):
        pair = single[2 * number : 2 * number + 2]
        for name in ("loss", "gradient_norm", "size"):
            np.testing.assert_allclose(line[name], np.mean([part[name] for part in pair]), rtol=1e-6)


def test_a_state_is_validated_every_so_often_and_at_the_end_also_where_the_run_was_stopped(whole, tmp_path):
    with pytest.raises(Preempted):
        run(tmp_path, Stream(events={3: terminate}), validate=4)
    state, *_ = run(tmp_path, Stream(), validate=4)
    lines = [(line["step"], line["heldout_loss"]) for line in read_metrics(tmp_path) if "heldout_loss" in line]
    assert lines == [(4, 4.0), (8, 8.0), (9, 9.0)]
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])


@pytest.mark.parametrize("stop_at", [0, 3, 5, 8])
def test_stopped_and_started_again_it_ends_with_the_same_bits(whole, tmp_path, stop_at):
    expected, shown = whole[1], []
    stream = Stream(events={stop_at: terminate})
    with pytest.raises(
        Preempted, match=f"SIGTERM: step {stop_at + 1} of videos is saved, and the same command goes on"
    ):
        run(tmp_path, stream)
    assert stream.closed == 1
    assert saved_steps(tmp_path)[-1] == stop_at + 1
    shown += [int(step.name) for step in (tmp_path / "samples" / "videos").glob("*")]
    again = Stream()
    state, _, more = run(tmp_path, again)
    assert again.read == list(range(stop_at + 1, STEPS))
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert sorted(shown + more) == [3, 6, 9], "also what was to be shown when the signal came"
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == sorted(set(steps))
    assert {2, 4, 6, 8, 9} <= set(steps)


def test_a_second_interrupt_from_the_keyboard_kills(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    stream = Stream(events={1: twice})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stream)
    assert stream.closed == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handlers are put back"


def test_a_crash_goes_on_from_the_last_checkpoint(whole, tmp_path):
    def crash():
        raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path, Stream(events={7: crash}))
    assert saved_steps(tmp_path) == [4, 6], "also what was shown last"
    assert [line["step"] for line in read_metrics(tmp_path)][-1] >= 6
    stream = Stream()
    state, _, _ = run(tmp_path, stream)
    assert stream.read == list(range(6, STEPS))
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 6, 8, 9], "lines beyond it are written anew"


def test_a_finished_stage_is_not_trained_again(whole, tmp_path):
    run(tmp_path, Stream())
    stream = Stream()
    state, _, shown = run(tmp_path, stream)
    assert (stream.read, shown) == ([], [])
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])


def test_other_data_is_not_gone_on_with(tmp_path):
    with pytest.raises(Preempted):
        run(tmp_path, Stream(events={2: terminate}))
    with pytest.raises(UserError, match=r"data was 'data' and is now 'other': .* or pass --fresh_data to keep"):
        run(tmp_path, Stream(name="other"))


def test_other_data_is_gone_on_with_when_asked(tmp_path, caplog):
    with pytest.raises(Preempted):
        run(tmp_path, Stream(events={2: terminate}))
    other = Stream(name="other", events={5: terminate})
    with caplog.at_level("WARNING"), pytest.raises(Preempted):
        run(tmp_path, other, fresh_data=True)
    assert other.read == [3, 4, 5], "batch n is that of step n also in the new order"
    said = "videos: batches from step 3 on are those of other data: data was 'data' and is now 'other'"
    assert caplog.messages.count(said) == 1
    # What is saved from then on belongs to the new data: it needs no flag, and the old data does.
    with pytest.raises(UserError, match="data was 'other' and is now 'data'"):
        run(tmp_path, Stream())
    again = Stream(name="other")
    state, _, _ = run(tmp_path, again)
    assert again.read == [6, 7, 8]
    assert int(state.step) == STEPS


def test_bad_steps_are_left_out_and_counted(tmp_path):
    state, _, _ = run(tmp_path, Stream(bad=[2, 5, 6]))
    assert [int(x) for x in (state.step, state.skipped, state.updates)] == [STEPS, 3, STEPS - 3]
    lines = {line["step"]: line for line in read_metrics(tmp_path)}
    assert all(isinstance(line["loss"], float) for line in lines.values()), "means of the good steps"
    assert [lines[step]["skipped"] for step in (2, 4, 6, 8, 9)] == [0, 1, 2, 3, 3]
    assert [lines[step]["unbroken"] for step in (2, 4, 6, 8, 9)] == [0, 0, 1, 0, 0]


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path):
    with pytest.raises(NumericsError, match=r"videos: 3 steps in a row, up to step 7, .* lower the learning rate"):
        run(tmp_path, Stream(bad=[4, 5, 6]))
    # The line of a step without any finite loss says so.
    assert [line["loss"] is None for line in read_metrics(tmp_path)] == [False, False, True]
    state, _, _ = run(tmp_path, Stream())
    assert int(state.step) == STEPS, "with other data it goes on from the last good checkpoint"


def test_what_reproduces_the_step_that_ended_a_run_is_written(tmp_path, caplog):
    with pytest.raises(NumericsError):
        run(tmp_path, Stream(bad=[4, 5, 6]))
    assert "videos: step 7 changed nothing, its loss or gradient is not finite; its batch 6 is of clip 6" in caplog.text
    folder = tmp_path / "failed" / "videos"
    with jax.set_mesh(MESH):
        found = load_tree(folder, maker().abstract())
    assert found.data == {"step": 6, "batch": 6, "names": ["clip 6"]}
    batch = dump.read_batch(folder, 6)
    assert np.isnan(batch["x"][0, 0])
    with pytest.raises(Preempted):
        run(tmp_path / "good", Stream(events={3: terminate}))
    with jax.set_mesh(MESH):
        good = load_tree(tmp_path / "good" / "checkpoints" / "videos", maker().abstract())
    assert good.step == 4
    for name in ("params", "ema", "opt_state", "stats"):
        jax.tree.map(np.testing.assert_array_equal, getattr(found.state, name), getattr(good.state, name))


def test_a_trace_of_the_steps_that_are_named_is_written(tmp_path, caplog):
    with caplog.at_level("INFO"):
        run(tmp_path, Stream(), samples=0, profile=(2, 3))
    (trace,) = (tmp_path / "profile" / "videos").glob("plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    numbers = {int(one["args"]["step_num"]) for one in events if one.get("name") == "train" and "args" in one}
    assert numbers == {2, 3}
    assert f"a trace of steps 2 to 3 is in {tmp_path}/profile/videos" in caplog.text


@pytest.mark.parametrize("steps", [(0, 3), (3, 2)])
def test_steps_that_cannot_be_traced_are_refused(steps):
    with pytest.raises(UserError, match="must be the first and the last step of a trace, counted from 1"):
        LogConfig(every_steps=1, samples_per_stage=0, validate_every=None, profile_steps=steps)


def test_debugging_names_the_operation_that_makes_a_nan_and_donates_nothing(tmp_path):
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=r"invalid value \(nan\) encountered in"):
        run(tmp_path, Stream(bad=[1]), samples=0)


SPIKES = {"window": 3, "spike_deviations": 6.0}


def test_a_spike_is_told_and_taken(whole, tmp_path, caplog):
    state, _, _ = run(tmp_path, Stream(wild=[5]), **SPIKES)
    assert (int(state.spikes), int(state.skipped)) == (1, 0)
    assert "videos: step 6 is a spike: loss " in caplog.text
    assert "its batch 5 is of clip 5" in caplog.text


def test_a_spike_that_is_left_out_changes_nothing(tmp_path):
    state, _, _ = run(tmp_path / "left out", Stream(wild=[5]), on_spike="skip", **SPIKES)
    without, _, _ = run(tmp_path / "bad", Stream(bad=[5]), **SPIKES)
    jax.tree.map(np.testing.assert_array_equal, state.params, without.params)
    assert (int(state.spikes), int(state.skipped)) == (1, 1)
    assert [line["spikes"] for line in read_metrics(tmp_path / "left out")] == [0, 0, 1, 1, 1]


def test_a_rewind_goes_on_past_what_it_met(tmp_path, caplog):
    stream = Stream(wild=[6])
    rewind = {"on_spike": "rewind", "rewind_steps": 2, "rewind_batches": 3}
    state, facts, _ = run(tmp_path, stream, **SPIKES, **rewind)
    assert "videos: back from step 7 to step 4; goes on with batch 9" in caplog.text
    assert (int(state.step), int(state.spikes), facts["rewinds"]) == (STEPS, 0, 1)
    assert stream.read == [*range(8), 9, 10, 11, 12, 13]
    assert saved_steps(tmp_path) == [8, 9]
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 6, 8, 9]


def test_a_rewind_finds_a_checkpoint_also_where_saves_lie_close(tmp_path, caplog):
    rewind = {"on_spike": "rewind", "rewind_steps": 3, "rewind_batches": 3}
    run(tmp_path, Stream(wild=[7]), every=1, keep=1, samples=0, **SPIKES, **rewind)
    assert "videos: back from step 8 to step 5; goes on with batch 10" in caplog.text


@pytest.mark.parametrize("stop_at", [10, 12])
def test_a_stop_after_a_rewind_ends_with_the_same_bits(tmp_path, stop_at):
    rewind = {"on_spike": "rewind", "rewind_steps": 2, "rewind_batches": 3, **SPIKES}
    expected, _, _ = run(tmp_path / "whole", Stream(wild=[6]), **rewind)
    with pytest.raises(Preempted):
        run(tmp_path / "stopped", Stream(wild=[6], events={stop_at: terminate}), **rewind)
    again = Stream(wild=[6])
    state, _, _ = run(tmp_path / "stopped", again, **rewind)
    assert again.read == list(range(stop_at + 1, 14))
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def averages_in(path):
    """Returns {updates: averages by track} that a stage kept."""
    tracks = {"ema": maker().abstract().ema}
    found = find_snapshots(path / "checkpoints" / "videos")
    return {one.updates: load_tree(one.folder.parent, tracks, step=int(one.folder.name)).state["ema"] for one in found}


def test_averages_are_kept_as_often_as_asked_also_of_a_run_that_was_stopped_or_went_back(tmp_path):
    rewind = {"on_spike": "rewind", "rewind_steps": 2, "rewind_batches": 3, **SPIKES}
    state, facts, _ = run(tmp_path / "whole", Stream(wild=[6]), snapshots=3, **rewind)
    kept = averages_in(tmp_path / "whole")
    assert facts["rewinds"] == 1
    assert list(kept) == [3, 6, 9], "those of steps that were undone are replaced"
    jax.tree.map(np.testing.assert_array_equal, kept[STEPS], state.ema)
    # Killed after the checkpoint of a step and before its averages were written.
    with pytest.raises(Preempted):
        run(tmp_path / "stopped", Stream(events={6: terminate}), snapshots=3, every=1, keep=9)
    averages = tmp_path / "stopped" / "checkpoints" / "videos" / AVERAGES
    assert sorted(find_steps(epath.Path(averages))) == [3, 6]
    shutil.rmtree(averages / "6")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "videos" / "7")
    run(tmp_path / "stopped", Stream(), snapshots=3, every=1, keep=9)
    assert list(averages_in(tmp_path / "stopped")) == [3, 6, 9]


def test_rewinds_come_to_an_end(tmp_path):
    rewind = {"on_spike": "rewind", "rewind_steps": 9, "rewind_batches": 1, "max_rewinds": 2, **SPIKES}
    stream = Stream(wild=[5, 9, 13])
    with pytest.raises(NumericsError, match=r"a spike at step 4 after 2 rewinds, as many as guard.max_rewinds allows"):
        run(tmp_path, stream, **rewind)
    assert 6 in stream.read, "the first one left out batch 5 alone"
    assert saved_steps(tmp_path) == [3], "of the last time only"


@pytest.mark.parametrize("samples", [0, 1, 20])
def test_what_is_shown_comes_as_often_as_configured(tmp_path, samples):
    _, _, shown = run(tmp_path, Stream(), samples=samples)
    assert shown == ([] if samples == 0 else [STEPS] if samples == 1 else list(range(1, STEPS + 1)))


def test_frozen_parameters_stay_and_a_stopped_run_ends_with_the_same_bits(tmp_path):
    whole, _, _ = run(tmp_path / "whole", Stream(), samples=0, trainable=r".*kernel")
    fresh = maker().fresh(jax.random.key(0))
    assert (set(whole.params), set(whole.frozen)) == ({"map.kernel"}, {"map.bias"})
    np.testing.assert_array_equal(whole.frozen["map.bias"], fresh.params["map.bias"])
    assert np.all(np.array(whole.params["map.kernel"]) != np.array(fresh.params["map.kernel"]))
    with pytest.raises(Preempted):
        run(tmp_path / "stopped", Stream(events={5: terminate}), samples=0, trainable=r".*kernel")
    folder = tmp_path / "stopped" / "checkpoints" / "videos"
    assert not [name for name in leaves.by_name(saved_leaves(epath.Path(folder) / "6")) if "bias" in name]
    kept = tmp_path / "kept"
    shutil.copytree(folder / "frozen", kept)
    save_frozen(folder, {"map.bias": jnp.ones(4)}, {})
    with pytest.raises(UserError, match="the checkpoints beside them were trained with"):
        run(tmp_path / "stopped", Stream(), trainable=r".*kernel")
    shutil.rmtree(folder / "frozen")
    shutil.copytree(kept, folder / "frozen")
    again = Stream()
    state, _, _ = run(tmp_path / "stopped", again, samples=0, trainable=r".*kernel")
    assert again.read == [6, 7, 8]
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_a_rewind_to_a_checkpoint_finds_what_is_frozen(tmp_path):
    rewind = {"on_spike": "rewind", "rewind_steps": 2, "rewind_batches": 3, **SPIKES}
    state, facts, _ = run(tmp_path, Stream(wild=[6]), samples=0, trainable=r".*kernel", **rewind)
    assert (int(state.step), facts["rewinds"], set(state.frozen)) == (STEPS, 1, {"map.bias"})
