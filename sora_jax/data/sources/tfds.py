"""Clips in a TensorFlow Datasets directory, read without TensorFlow.

Shapes: `T` frames, `H` rows of pixels, `W` columns of pixels, `C` colours.

The data set must lie there in the array_record format. Of its features `video` (else `image`) and `caption` are read,
and `weights`, `fps` and `file` where they exist: `video` is either a media file as it is (`features.Text()` keeps any
bytes) or uint8 pixels (T, H, W, C) with an `fps`. `features.Video` cannot even be opened without TensorFlow.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Unpack

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.media import video_io
from sora_jax.data.media.frame_rates import at_rate
from sora_jax.data.media.pictures import ReadLimits, Tell, shrunk, tell_nobody
from sora_jax.data.media.videos import LATEST_SHARE
from sora_jax.data.sources.base import digest
from sora_jax.data.sources.caption_lookup import Names, Told, look_up, read_named
from sora_jax.data.sources.caption_tables import parse_json, weighted
from sora_jax.data.sources.decoded import DecodedSource, SourceLimits
from sora_jax.data.sources.remote import AnyPath, is_folder, list_files, place, reaching, read_whole
from sora_jax.data.tokens import Captions, clean_captions

DEFAULT_SPLIT = "train"
MEDIA_FEATURES = ("video", "image")
# Pictures are told by their bytes, videos by their names: what a nameless one is taken for.
_NAMELESS = {"video": ".mp4", "image": ".png"}
# Where features.json names a class, which is imported, and those that are known without a search.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_KNOWN_CLASSES = "tensorflow_datasets.core.features."
_DIMENSIONS = {"video": 4, "image": 3}


class TfdsSource(DecodedSource):
    """The captioned clips of one split; `path` is the folder of a version, then `#` and the split if it is not train.

    A split may be cut: `DIR#train[:90%]`. A clip without a caption is a bad clip. The table `captions`, if there is
    one, has others for the clips that it names, as `source_id` does, and for windows of them; `missing` are those that
    are not there.

    Raises `UserError` when the folder holds no data set that can be read without TensorFlow, the split is unknown or
    empty, or the features are not those described at the top of this module.
    """

    def __init__(
        self, path: str | os.PathLike, *, captions: str | os.PathLike | None = None, **limits: Unpack[SourceLimits]
    ):
        super().__init__(**limits)
        with reaching(path):
            folder, split = _parse_path(os.fspath(path))
            self._sizes = list_files(folder)
            builder = _open_builder(folder, self._sizes)
            self._media = _check_features(builder.info.features, folder)
            written = "caption" in builder.info.features
            if self.captions_required is None:
                self.captions_required = written or captions is not None
            if self.captions_required and not written and captions is None:
                raise UserError(
                    f"the data set {folder} has no feature 'caption', only {', '.join(sorted(builder.info.features))}: "
                    "rename one, or write data.captions"
                )
            self._clips = _open_split(builder, split, folder)
            self._name = f"{builder.info.full_name}#{split}"
            told = [(folder / name).read_text() for name in self._sizes if name.endswith(".json")]
        self._state = digest(self._name, len(self), list(self._sizes.items()), told)
        table = Told()
        if captions is not None:
            table = look_up(read_named(captions), Names(map(self.source_id, range(len(self)))))
        self._told, self._windows, self.missing = table.captions, table.windows, table.missing
        self.retold = table.clips

    def __len__(self) -> int:
        return len(self._clips)

    def _read(self, index: int, **options: Any) -> Clip:
        name = self.source_id(index)
        try:
            row = self._clips[index]
        except (*video_io.DECODING_ERRORS, RuntimeError) as error:
            raise BadClip(name, f"cannot be read: {str(error)[:120]}") from error
        captions, weights = self._captions(row, name)
        if not captions and self.captions_required and name not in self._windows:
            raise BadClip(name, "has no caption")
        media = row[self._media]
        if isinstance(media, bytes):
            pixels_THWC, fps = self._decode(media, row, name, **options)
        else:
            pixels_THWC, fps = self._pixels(media, row, name, **options)
        return Clip(pixels_THWC=pixels_THWC, fps=fps, captions=captions, weights=weights, source_id=name)

    def _captions(self, row: Mapping[str, Any], name: str) -> Captions:
        """Returns the captions of a row; raises `BadClip` where they are broken."""
        try:
            return self._told.get(name) or _captions(row)
        except ValueError as error:
            raise BadClip(name, str(error)) from error

    def _captioned(self, index: int) -> bool:
        name = self.source_id(index)
        if name in self._told or name not in self._windows:
            return True  # or it is bad, which reading tells
        try:
            return bool(self._captions(self._clips[index], name)[0])
        except (BadClip, *video_io.DECODING_ERRORS, RuntimeError):
            return False

    def size(self, index: int) -> int:
        """Returns the bytes of the whole data set: those of a clip are known only when it is read."""
        return sum(size or 0 for size in self._sizes.values())

    def source_id(self, index: int) -> str:
        """Returns the data set's name and version, the split and the clip's number in it."""
        return f"{self._name}/{index:06d}"

    def origin(self, index: int) -> str:
        """Returns, for every clip, a digest of what the data set says about itself and of the sizes of all files.

        Captions are not read one by one, as they lie with the videos: data that change need a new version, as is the
        rule of TensorFlow Datasets.
        """
        name = self.source_id(index)
        told = [self._told[name]] if name in self._told else []
        windows = self._facts_of_windows(index)
        return digest(self._state, told, *windows) if told or windows else self._state

    def _decode(self, media: bytes, row: Mapping[str, Any], name: str, **options: Any) -> tuple[np.ndarray, float]:
        """Returns the pixels and the rate of a media file."""
        written = row["file"].decode("utf-8", "backslashreplace") if "file" in row else ""
        suffix = PurePosixPath(written).suffix or _NAMELESS[self._media]
        try:
            return self._reader.read_bytes(media, f"{name}{suffix}", **options)
        except BadClip as error:
            raise BadClip(name, error.reason) from error

    def _pixels(
        self,
        media: np.ndarray,
        row: Mapping[str, Any],
        name: str,
        *,
        max_pixels: int,
        fps: float | None = None,
        max_frames: int | None = None,
        window: tuple[int, int] | None = None,
        short_side: int | None = None,
        tell: Tell = tell_nobody,
    ) -> tuple[np.ndarray, float]:
        """Returns pixels that are stored as such, grey ones in three equal colours, and their rate."""
        rate = float(row["fps"]) if self._media == "video" else 1.0
        if not 0 < rate < float("inf"):
            raise BadClip(name, f"has {rate} frames per second")
        pixels_THWC = media if self._media == "video" else media[None]
        first, last = window or (0, (max_frames or sys.maxsize) - 1)
        if fps and rate >= fps:
            timed = ((number, number / rate) for number in range(len(pixels_THWC)))
            numbers = list(at_rate(timed, fps=fps, slack=LATEST_SHARE / rate))
            tell(len(numbers))
            pixels_THWC, rate = pixels_THWC[numbers[first : last + 1]], fps
        else:
            tell(len(pixels_THWC))
            pixels_THWC = pixels_THWC[first : last + 1]
        if pixels_THWC.size == 0:
            raise BadClip(name, f"has no frames after the first {first}: {media.shape}")
        frames, height, width, _ = pixels_THWC.shape
        limits = ReadLimits(source_id=name, max_frames=None, max_pixels=max_pixels, short_side=short_side)
        limits.check(frames, *limits.size(height, width))
        pixels_THWC = np.ascontiguousarray(np.broadcast_to(pixels_THWC, (frames, height, width, 3)))
        if short_side is not None:
            pixels_THWC = np.stack([np.asarray(shrunk(Image.fromarray(p_HWC), limits)) for p_HWC in pixels_THWC])
        return pixels_THWC, rate


def _parse_path(written: str) -> tuple[AnyPath, str]:
    """Returns the folder and the split."""
    whole = place(written, schemes=("gs",))
    if is_folder(whole):
        return whole, DEFAULT_SPLIT
    folder, _, split = written.rpartition("#")
    folder = place(folder or written)
    if not is_folder(folder):
        raise UserError(f"the folder {folder} does not exist: pass --config.data.path=DIR/NAME/VERSION or that#SPLIT")
    return folder, split


def _open_builder(folder: AnyPath, files: Iterable[str]) -> Any:
    """Returns the `tfds.core.DatasetBuilder` of a prepared data set, whose own types say too little to be checked."""
    _check_classes(folder, files)
    if "dataset_info.json" not in files:
        inner = [name for name in files if name.endswith("/dataset_info.json")]
        hint = f"pass {(folder / inner[0]).parent}" if inner else "write one as docs/data.md says"
        raise UserError(f"{folder} holds no data set, which has a dataset_info.json: {hint}")
    try:
        return tfds.builder_from_directory(folder)
    except ImportError as error:
        raise UserError(
            f"the data set {folder} has features that need TensorFlow ({error}), such as features.Video: write it with "
            "media files as features.Text, see docs/data.md"
        ) from error
    except Exception as error:  # damage has as many types here as there are formats below
        raise UserError(f"the data set {folder} cannot be opened: {_first_line(error)}: write it again") from error


def _check_classes(folder: AnyPath, files: Iterable[str]) -> None:
    """Raises `UserError` for a feature of a class that is not of TensorFlow Datasets: to look for it is to run it."""
    if "features.json" not in files:
        return
    waiting = [_read_json(folder / "features.json")]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            names = [found[key] for key in _CLASS_KEYS if isinstance(found.get(key), str)]
            if foreign := [name for name in names if "." in name and not name.startswith(_KNOWN_CLASSES)]:
                raise UserError(
                    f"the data set {folder} names the class {foreign[0][:80]!r}, which is code of its own and not "
                    "loaded: write it with features of TensorFlow Datasets alone"
                )
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def _read_json(path: AnyPath) -> Any:
    """Returns what a features.json says; raises `UserError` where it is none."""
    try:
        return parse_json(read_whole(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): write the data set again") from error


def _check_features(features: Any, folder: AnyPath) -> str:
    """Returns "video" or "image", whichever is read; raises `UserError` where features are not as they must be."""
    names = ", ".join(sorted(features))
    media = next((name for name in MEDIA_FEATURES if name in features), None)
    if media is None:
        raise UserError(f"the data set {folder} has no feature 'video' or 'image', only {names}: rename one")
    feature = features[media]
    is_array = isinstance(feature.shape, tuple)
    is_file = is_array and feature.shape == () and np.dtype(feature.np_dtype).kind == "O"
    is_pixels = is_array and len(feature.shape) == _DIMENSIONS[media] and feature.np_dtype == np.uint8
    if not is_file and not (is_pixels and feature.shape[-1] in (1, 3)):
        raise UserError(
            f"the feature {media!r} of {folder} has the shape {feature.shape} and the type {feature.np_dtype}: it must "
            f"be the bytes of a media file, or uint8 pixels in {_DIMENSIONS[media]} dimensions with 1 or 3 colours"
        )
    if media == "video" and is_pixels and "fps" not in features:
        raise UserError(f"the data set {folder} has videos as pixels and no feature 'fps', only {names}: add it")
    return media


def _open_split(builder: Any, split: str, folder: AnyPath) -> Any:
    """Returns the rows of a split, each a dict of features."""
    written = builder.info.file_format
    if written is not None and written.value != "array_record":
        raise UserError(
            f"the data set {folder} is in the format {written.value}, which needs TensorFlow: write it "
            'with file_format="array_record"'
        )
    try:
        paths = [path for part in builder.info.splits.values() for path in part.filepaths]
        if outside := [path for path in paths if path.parent != folder]:
            raise ValueError(f"{outside[0]} lies outside of it")
        return builder.as_data_source(split=split)
    except Exception as error:  # as above
        known = ", ".join(builder.info.splits)
        said = f"the split {split!r} of {folder} cannot be read ({_first_line(error)})"
        raise UserError(f"{said}: it has {known}") from error


def _captions(row: Mapping[str, Any]) -> Captions:
    """Returns the cleaned captions of a row and their weights; raises `ValueError` where either is broken."""
    written = row.get("caption", [])
    texts = [written] if isinstance(written, bytes | str) else list(written)
    decoded = [text.decode() if isinstance(text, bytes) else str(text) for text in texts]
    weights = {"weights": np.asarray(row["weights"]).tolist()} if "weights" in row else {}
    return clean_captions(weighted(decoded, weights))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
