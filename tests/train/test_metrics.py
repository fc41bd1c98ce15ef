import itertools
import json
import math
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from sora_jax.core.errors import StorageError
from sora_jax.train.metrics import MetricsWriter, SilentWriter, read_metrics


def strict(line: str) -> dict:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def events(workdir, stage):
    accumulator = EventAccumulator(str(workdir / "tensorboard" / stage), size_guidance={"images": 0, "scalars": 0})
    return accumulator.Reload()


def test_lines_are_strict_json_even_where_a_loss_is_not_finite(tmp_path):
    with MetricsWriter(tmp_path / "new") as writer:
        writer.write("autoencoder", 1, {"loss": 0.5, "grad": float("inf")})
        writer.write("diffusion", 2, {"loss": float("nan"), "fill": float(np.float32(0.25)), "rows": 3})
    lines = [strict(line) for line in (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"stage": "autoencoder", "step": 1, "loss": 0.5, "grad": None},
        {"stage": "diffusion", "step": 2, "loss": None, "fill": 0.25, "rows": 3.0},
    ]
    assert list(lines[0]) == ["stage", "step", "loss", "grad"]
    assert read_metrics(tmp_path / "new") == lines


def test_each_line_can_be_read_while_the_run_goes_on(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("diffusion", 1, {"loss": 1})
        assert read_metrics(tmp_path) == [{"stage": "diffusion", "step": 1, "loss": 1.0}]


def test_a_torn_line_is_left_out_and_does_not_take_the_next_with_it(tmp_path):
    assert read_metrics(tmp_path) == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "a", "step": 1}\n[1]\n{"stage": "a", "st')
    assert read_metrics(tmp_path) == [{"stage": "a", "step": 1}]
    with MetricsWriter(tmp_path) as writer:
        writer.write("a", 2, {})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_truncate_removes_the_later_steps_of_one_stage(tmp_path, monkeypatch):
    # TensorBoard reads files in the order of their names, which within a second is that of a counter's digits: 10, 9.
    # Runs begin seconds apart.
    seconds = itertools.count(1_800_000_000)
    monkeypatch.setattr(event_file_writer, "time", types.SimpleNamespace(time=lambda: next(seconds)))
    with MetricsWriter(tmp_path) as writer:
        for stage in ("autoencoder", "diffusion"):
            for step in range(1, 6):
                writer.write(stage, step, {"loss": step})
    with MetricsWriter(tmp_path) as writer:
        writer.truncate("diffusion", 3)
        writer.write("diffusion", 4, {"loss": 40})
    steps = [(line["stage"], line["step"], line["loss"]) for line in read_metrics(tmp_path)]
    assert steps == [("autoencoder", s, s) for s in range(1, 6)] + [
        ("diffusion", 1, 1),
        ("diffusion", 2, 2),
        ("diffusion", 3, 3),
        ("diffusion", 4, 40),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}
    scalars = [(event.step, event.value) for event in events(tmp_path, "diffusion").Scalars("diffusion/loss")]
    assert scalars == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert len(events(tmp_path, "autoencoder").Scalars("autoencoder/loss")) == 5


def test_tensorboard_reads_scalars_pictures_and_videos(tmp_path):
    generator = np.random.default_rng(0)
    video = generator.integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
    with MetricsWriter(tmp_path) as writer:
        writer.write("diffusion", 7, {"loss": 0.5, "bad": math.nan})
        writer.write_image("diffusion", 7, "sample", video[0])
        writer.write_video("diffusion", 8, "clip", video, fps=4)
    read = events(tmp_path, "diffusion")
    assert [(event.step, event.value) for event in read.Scalars("diffusion/loss")] == [(7, 0.5)]
    assert math.isnan(read.Scalars("diffusion/bad")[0].value)
    (image,), (clip,) = read.Images("diffusion/sample"), read.Images("diffusion/clip")
    assert (image.step, image.width, image.height, image.encoded_image_string[:4]) == (7, 12, 8, b"\x89PNG")
    assert (clip.step, clip.width, clip.height, clip.encoded_image_string[:4]) == (8, 12, 8, b"GIF8")


def test_a_place_that_refuses_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="metrics cannot be written"):
        MetricsWriter(tmp_path / "file")


def test_a_process_that_does_not_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels_HWC = np.zeros((4, 4, 3), np.uint8)
    with SilentWriter() as writer:
        writer.truncate("a", 0)
        writer.write("a", 1, {"loss": 1.0})
        writer.write_image("a", 1, "b", pixels_HWC)
        writer.write_video("a", 1, "b", pixels_HWC[None], 8.0)
    assert list(tmp_path.iterdir()) == []
    theirs = {name for name in vars(MetricsWriter) if not name.startswith("_")}
    assert theirs <= vars(SilentWriter).keys(), "what is new there must be silent here"
