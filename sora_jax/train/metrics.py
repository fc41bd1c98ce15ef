"""Metrics on disk: one strict JSON line a write in `metrics.jsonl`, and the same in TensorBoard's format.

TensorBoard's own event writer is used without TensorFlow. A video is an animated GIF inside an image summary,
which TensorBoard plays.

    WORKDIR/metrics.jsonl          {"stage": "diffusion", "step": 200, "loss": 0.61, "fill": 0.98}
    WORKDIR/tensorboard/<stage>/   event files; scalars and pictures are called <stage>/<name>
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from google.protobuf.message_factory import GetMessageClass
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from sora_jax.core.errors import StorageError
from sora_jax.core.metric_table import metric_of
from sora_jax.data.media.writer import encode_gif, encode_png

METRICS_FILE = "metrics.jsonl"

# Protobuf makes these classes while the modules are imported; no type checker can see them there.
Event: Any = GetMessageClass(event_pb2.DESCRIPTOR.message_types_by_name["Event"])
SessionLog: Any = GetMessageClass(event_pb2.DESCRIPTOR.message_types_by_name["SessionLog"])
_Summary: Any = GetMessageClass(summary_pb2.DESCRIPTOR.message_types_by_name["Summary"])


class MetricsWriter:
    """Appends to the metrics of `workdir`, which is created; one process of a run has one. A context manager.

    Every method raises `StorageError` where the file system refuses.
    """

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        self._path = Path(workdir) / METRICS_FILE
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _end_last_line(self._path)
            self._lines = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._refused(error) from error
        self._events: dict[str, EventFileWriter] = {}

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line with the keys stage, step and those of `scalars`; non-finite values become null."""
        assert not {"stage", "step"} & scalars.keys()
        values = {name: float(value) for name, value in scalars.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"stage": stage, "step": int(step), **finite}, allow_nan=False)
        try:
            self._lines.write(line + "\n")
            self._lines.flush()
        except OSError as error:
            raise self._refused(error) from error
        # TensorBoard can show where a curve became NaN.
        self._add(stage, step, summary=_Summary(value=[self._scalar(stage, name, values[name]) for name in values]))

    def write_image(self, stage: str, step: int, name: str, pixels_HWC: np.ndarray) -> None:
        """Writes one picture, uint8 (H, W, 3), to TensorBoard."""
        self._add_image(stage, step, name, encode_png(pixels_HWC), size=pixels_HWC.shape[:2])

    def write_video(self, stage: str, step: int, name: str, pixels_THWC: np.ndarray, fps: float) -> None:
        """Writes one video, uint8 (T, H, W, 3) at `fps` frames per second, to TensorBoard."""
        self._add_image(stage, step, name, encode_gif(pixels_THWC, fps=fps), size=pixels_THWC.shape[1:3])

    def truncate(self, stage: str, step: int) -> None:
        """Removes the lines of `stage` beyond `step`: a resumed run writes them again. Other stages stay.

        The file is replaced as a whole, so an interruption leaves the old one. TensorBoard is told to forget
        the same steps, which is why each stage has event files of its own.
        """
        kept = [line for line in _read(self._path) if line["stage"] != stage or line["step"] <= step]
        partial = self._path.with_name(f".{METRICS_FILE}.partial")
        try:
            self._lines.close()
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            partial.replace(self._path)
            self._lines = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._refused(error) from error
        self._add(stage, step + 1, session_log=SessionLog(status=SessionLog.START))

    def close(self) -> None:
        """Writes out what is buffered and closes the files."""
        try:
            self._lines.close()
            for events in self._events.values():
                events.close()
        except OSError as error:
            raise self._refused(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scalar(self, stage: str, name: str, value: float) -> Any:
        """Returns a value as TensorBoard reads it, with what it is where the table of metrics knows."""
        row = metric_of(name)
        said = {} if row is None else {"metadata": {"summary_description": row.says}}
        return _Summary.Value(tag=f"{stage}/{name}", simple_value=value, **said)

    def _add_image(self, stage: str, step: int, name: str, content: bytes, *, size: tuple[int, ...]) -> None:
        height, width = size
        image = _Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        tagged = [_Summary.Value(tag=f"{stage}/{name}", image=image)]
        self._add(stage, step, summary=_Summary(value=tagged))

    def _add(self, stage: str, step: int, **content: Any) -> None:
        event = Event(wall_time=time.time(), step=int(step), **content)
        try:
            if stage not in self._events:
                directory = self._path.parent / "tensorboard" / stage
                self._events[stage] = EventFileWriter(str(directory), flush_secs=30)
            self._events[stage].add_event(event)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(f"metrics cannot be written in {self._path.parent}: {error}")


class SilentWriter(MetricsWriter):
    """Writes nothing: of several processes of a run one has a `MetricsWriter`, and the others this."""

    def __init__(self) -> None:
        pass

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Does nothing."""

    def write_image(self, stage: str, step: int, name: str, pixels_HWC: np.ndarray) -> None:
        """Does nothing."""

    def write_video(self, stage: str, step: int, name: str, pixels_THWC: np.ndarray, fps: float) -> None:
        """Does nothing."""

    def truncate(self, stage: str, step: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` in the order written, values float or None; [] if there is no file.

    A line that an interruption cut short is left out.
    """
    return _read(Path(workdir) / METRICS_FILE)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict) and {"stage", "step"} <= line.keys()]


def _end_last_line(path: Path) -> None:
    """Ends a line that an interruption cut short, or the next one would be lost with it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
