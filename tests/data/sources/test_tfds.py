"""A TensorFlow Datasets directory as a source of clips, written and read without TensorFlow."""

import contextlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip
from sora_jax.data.curation.source import VideoFiles
from sora_jax.data.media.video_io import read_clip
from sora_jax.data.media.writer import encode_png, write_clip
from sora_jax.data.sources.base import Source, fingerprint
from sora_jax.data.sources.tfds import TfdsSource
from sora_jax.experiment import datasets
from sora_jax.experiment.settings import read_settings

TEXT = tfds.features.Text()
PIXELS = tfds.features.Tensor(shape=(None, None, None, 3), dtype=np.uint8, encoding="bytes")


def drawn(frames: int, value: int) -> np.ndarray:
    pixels_THWC = np.full((frames, 16, 24, 3), value, np.uint8)
    pixels_THWC[np.arange(frames), 0, np.arange(frames)] = 255
    return pixels_THWC


class TinyClips(tfds.core.GeneratorBasedBuilder):
    """Whatever rows it is given, by split."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, features: dict[str, Any], rows: dict[str, list[dict[str, Any]]], **options: Any):
        self._features = features
        self._rows = rows
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self._features))

    def _split_generators(self, dl_manager: object) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self._rows}

    def _generate_examples(self, split: str) -> Any:
        yield from enumerate(self._rows[split])


def write(folder: Path, features: dict[str, Any], **rows: list[dict[str, Any]]) -> Path:
    builder = TinyClips(features=features, rows=rows, data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_path)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A data set of media files: five clips to train on, one to test."""
    folder = tmp_path_factory.mktemp("tfds")
    rows = []
    for number, suffix in enumerate((".mp4", ".gif", ".png", ".mp4", ".mp4", ".gif")):
        path = folder / f"clip{suffix}"
        write_clip(path, drawn(1 if suffix == ".png" else 4, 40 * number), fps=10.0)
        captions = [f"number  {number}", "a clip"]
        rows.append({"video": path.read_bytes(), "file": f"{number}{suffix}", "caption": captions})
    rows[3]["caption"] = []
    rows[4]["video"] = b"no video"
    features = {"video": TEXT, "file": TEXT, "caption": tfds.features.Sequence(TEXT)}
    return write(folder / "written", features, train=rows[:5], test=rows[5:])


def test_no_tensorflow_is_needed():
    assert "tensorflow" not in sys.modules


def test_media_files_are_decoded(files):
    source: Source = TfdsSource(files)
    assert len(source) == 5
    clips, reasons = {}, []
    for index in range(5):
        assert source.source_id(index) == f"tiny_clips/1.0.0#train/{index:06d}"
        try:
            clip = source[index]
        except BadClip as bad:
            reasons.append((bad.source_id == source.source_id(index), bad.reason[:17]))
            continue
        assert clip.source_id == source.source_id(index)
        clips[clip.captions] = clip
    assert sorted(clips) == [(f"number {number}", "a clip") for number in range(3)]
    np.testing.assert_array_equal(clips["number 1", "a clip"].pixels_THWC, drawn(4, 40))
    np.testing.assert_array_equal(clips["number 2", "a clip"].pixels_THWC, drawn(1, 80))
    assert clips["number 0", "a clip"].fps == pytest.approx(10)
    assert sorted(reasons) == [(True, "cannot be decoded"), (True, "has no caption")]


def test_a_split_is_chosen_and_cut(files):
    test = TfdsSource(f"{files}#test")
    assert (len(test), test[0].captions[0]) == (1, "number 5")
    cut = TfdsSource(f"{files}#train[1:3]")
    whole = TfdsSource(files)
    assert [cut._clips[i]["file"] for i in range(2)] == [whole._clips[i]["file"] for i in (1, 2)]
    assert len({fingerprint(source) for source in (test, cut, whole)}) == 3


def test_any_order_of_access_gives_the_same_clips_also_after_pickling(files):
    source = TfdsSource(f"{files}#test")
    copy = pickle.loads(pickle.dumps(source))
    for _ in range(2):
        np.testing.assert_array_equal(source[0].pixels_THWC, copy[0].pixels_THWC)
    assert fingerprint(copy) == fingerprint(source)


def test_limits_reach_the_decoder(files):
    assert len(TfdsSource(f"{files}#test", max_frames=2)[0].pixels_THWC) == 2
    assert TfdsSource(f"{files}#test", fps=2.0)[0].fps == 2.0
    with pytest.raises(BadClip, match="max_pixels"):
        TfdsSource(f"{files}#test", max_pixels=100)[0]


def test_pixels_are_taken_as_they_are(tmp_path):
    rows = [{"video": drawn(5, 60), "caption": "text", "fps": fps} for fps in (12.0, 0.0)]
    path = write(tmp_path, {"video": PIXELS, "caption": TEXT, "fps": np.float32}, train=rows[:1], bad=rows[1:])
    clip = TfdsSource(path, max_frames=3)[0]
    np.testing.assert_array_equal(clip.pixels_THWC, drawn(5, 60)[:3])
    assert (clip.fps, clip.captions) == (12.0, ("text",))
    for fps, numbers in ((4.0, [0, 3]), (12.0, range(5)), (24.0, range(5))):
        resampled = TfdsSource(path, fps=fps)[0]
        np.testing.assert_array_equal(resampled.pixels_THWC, drawn(5, 60)[list(numbers)])
        assert resampled.fps == min(fps, 12.0)
    with pytest.raises(BadClip, match=r"has 0\.0 frames per second"):
        TfdsSource(f"{path}#bad")[0]
    with pytest.raises(BadClip, match="5 frames of 16x24 exceed max_pixels = 100"):
        TfdsSource(path, max_pixels=100)[0]


def test_windows_and_thumbnails_of_media_files_are_decoded(files, tmp_path):
    write_clip(tmp_path / "same.gif", drawn(4, 200), fps=10.0)
    source: VideoFiles = TfdsSource(f"{files}#test", max_frames=2)
    np.testing.assert_array_equal(source.window(0, 1, 3).pixels_THWC, drawn(4, 200)[1:])
    small = source.thumbnails(0, short_side=8)
    np.testing.assert_array_equal(small.pixels_THWC, read_clip(tmp_path / "same.gif", short_side=8)[0])
    assert (small.captions[0], small.source_id) == ("number 5", "tiny_clips/1.0.0#test/000000")
    with pytest.raises(BadClip, match="has no frames after the first 4"):
        source.window(0, 4, 5)
    assert source.size(0) == sum(path.stat().st_size for path in files.iterdir())


def test_windows_and_thumbnails_of_pixels_are_slices_and_resized(tmp_path):
    row = {"video": drawn(6, 60), "caption": "text", "fps": 12.0}
    path = write(tmp_path, {"video": PIXELS, "caption": TEXT, "fps": np.float32}, train=[row])
    source = TfdsSource(path, max_frames=2, max_pixels=6 * 16 * 24 - 1)
    window = source.window(0, 3, 9)
    np.testing.assert_array_equal(window.pixels_THWC, drawn(6, 60)[3:])
    assert (window.fps, window.captions) == (12.0, ("text",))
    small = source.thumbnails(0, short_side=8)
    pairs_THWC = drawn(6, 60).reshape(6, 8, 2, 12, 2, 3).mean((2, 4))
    np.testing.assert_allclose(small.pixels_THWC, pairs_THWC, atol=0.5)
    assert (small.fps, small.pixels_THWC.shape) == (12.0, (6, 8, 12, 3))
    with pytest.raises(BadClip, match="has no frames after the first 6"):
        source.window(0, 6, 7)
    with pytest.raises(BadClip, match="6 frames of 16x24 exceed max_pixels"):
        source.window(0, 0, 5)


def test_a_run_curates_a_data_set_of_pixels(toy_config, tmp_path):
    rows = [{"video": drawn(8, 60), "caption": "moves", "fps": 12.0}]
    rows += [{"video": np.repeat(drawn(1, 90), 8, axis=0), "caption": "is still", "fps": 12.0}]
    config = toy_config()
    config.data.source = "tfds"
    config.data.path = str(write(tmp_path, {"video": PIXELS, "caption": TEXT, "fps": np.float32}, train=rows))
    config.data.max_frames, config.data.min_tokens = 4, 1
    config.data.curation.windows_per_file, config.data.curation.max_static_share = 2, 0.5
    settings = read_settings(config)
    (collection,) = datasets.open_collections(settings)
    source = datasets.curate(collection, settings.data, tmp_path / "curation").source
    assert len(source) == 2
    for index, frames in enumerate((slice(0, 4), slice(4, 8))):
        np.testing.assert_array_equal(source[index].pixels_THWC, drawn(8, 60)[frames])
        assert source[index].captions == ("moves",)


def test_weights_are_a_feature_beside_the_captions(tmp_path):
    (tmp_path / "a.png").write_bytes(encode_png(drawn(1, 90)[0]))
    features = {
        "image": TEXT,
        "caption": tfds.features.Sequence(TEXT),
        "weights": tfds.features.Sequence(np.float32),
    }
    row = {"image": (tmp_path / "a.png").read_bytes(), "caption": ["\ufeffone", " \u200b", "two"]}
    splits = {"good": [3, 9, 1], "alike": [2, 2, 2], "short": [1, 2], "zero": [1, 1, 0]}
    rows = {split: [{**row, "weights": weights}] for split, weights in splits.items()}
    path = write(tmp_path, features, **rows)
    for split, weights in (("good", (3.0, 1.0)), ("alike", None)):
        clip = TfdsSource(f"{path}#{split}")[0]
        assert (clip.captions, clip.weights) == (("one", "two"), weights)
    for split, reason in (
        ("short", r"has the weights \[1\.0, 2\.0\] for 3 captions"),
        ("zero", r"has the weight '0\.0'"),
    ):
        source = TfdsSource(f"{path}#{split}")
        with pytest.raises(BadClip, match=reason) as caught:
            source[0]
        assert caught.value.source_id == source.source_id(0)
    text = {"image": row["image"], "caption": [b"\xff"], "weights": [1]}
    with pytest.raises(BadClip, match="decode byte 0xff in position 0"):
        TfdsSource(write(tmp_path / "latin", features, train=[text]))[0]


def test_images_are_clips_of_one_frame(tmp_path):
    grey = tfds.features.Tensor(shape=(None, None, 1), dtype=np.uint8, encoding="bytes")
    pixels_HW1 = drawn(1, 70)[0, :, :, :1]
    path = write(tmp_path / "a", {"image": grey, "caption": TEXT}, train=[{"image": pixels_HW1, "caption": "text"}])
    np.testing.assert_array_equal(TfdsSource(path)[0].pixels_THWC, drawn(1, 70))
    np.testing.assert_array_equal(TfdsSource(path).window(0, 0, 0).pixels_THWC, drawn(1, 70))
    (tmp_path / "a.png").write_bytes(encode_png(drawn(1, 90)[0]))
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "caption": TEXT}
    path = write(tmp_path / "b", features, train=[{"image": str(tmp_path / "a.png"), "caption": "text"}])
    np.testing.assert_array_equal(TfdsSource(path)[0].pixels_THWC, drawn(1, 90))


def test_fingerprint_changes_with_sizes_and_versions(files, tmp_path):
    path = shutil.copytree(files, tmp_path / "copy")
    seen = [fingerprint(TfdsSource(files)), fingerprint(TfdsSource(path))]
    info = json.loads((path / "dataset_info.json").read_text())
    (path / "dataset_info.json").write_text(json.dumps({**info, "version": "1.0.1"}))
    seen.append(fingerprint(TfdsSource(path)))
    data = next(path.glob("*train*"))
    data.write_bytes(data.read_bytes() + b"\0")
    seen.append(fingerprint(TfdsSource(path)))
    assert seen[0] == seen[1], "it does not depend on the place"
    assert len(set(seen)) == 3


def test_a_file_that_is_gone_or_damaged_gives_bad_clips(files, tmp_path):
    path = shutil.copytree(files, tmp_path / "copy")
    os.truncate(next(path.glob("*train*")), 1000)
    next(path.glob("*test*")).unlink()
    with pytest.raises(BadClip, match="cannot be read"):
        TfdsSource(path)[0]
    with pytest.raises(BadClip, match="No such file"):
        TfdsSource(f"{path}#test")[0]


@pytest.mark.parametrize(
    ("features", "row", "message"),
    [
        ({"clip": TEXT, "caption": TEXT}, {"clip": b"a"}, "has no feature 'video' or 'image', only caption, clip"),
        ({"video": TEXT, "label": TEXT}, {"video": b"a", "label": "b"}, "has no feature 'caption', only label, video"),
        ({"video": PIXELS, "caption": TEXT}, {"video": drawn(1, 1)}, "has videos as pixels and no feature 'fps'"),
        ({"video": np.float32, "caption": TEXT}, {"video": 1.0}, r"has the shape \(\) and the type .*float32"),
        ({"video": {"a": TEXT}, "caption": TEXT}, {"video": {"a": "b"}}, "it must be the bytes of a media file"),
    ],
)
def test_features_that_do_not_fit_are_named(tmp_path, features, row, message):
    path = write(tmp_path, features, train=[row if "label" in features else {**row, "caption": "text"}])
    with pytest.raises(UserError, match=message):
        TfdsSource(path)


def edited(files: Path, copy: Path, name: str, old: str, new: str) -> Path:
    shutil.copytree(files, copy)
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new))
    return copy


def test_mistakes_are_one_sentence(files, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "nowhere", "nowhere does not exist: pass --config.data.path=DIR/NAME/VERSION"),
        (tmp_path / "empty", "holds no data set, which has a dataset_info.json: write one"),
        (files.parent, f"pass {files}"),
        (f"{files}#validation", "'validation' of .* cannot be read .*: it has train, test"),
        (f"{files}#train[", "cannot be read"),
        (f"{files}#train[:0]", "cannot be read"),
        (edited(files, tmp_path / "a", "dataset_info.json", "array_record", "tfrecord"), "which needs TensorFlow"),
        (edited(files, tmp_path / "b", "features.json", "text_feature.Text", "text_feature.Nope"), "cannot be opened"),
        (edited(files, tmp_path / "c", "dataset_info.json", "{", ""), "cannot be opened"),
        (edited(files, tmp_path / "d", "features.json", "{", ""), "features.json is damaged"),
        (edited(files, tmp_path / "e", "dataset_info.json", "{DATASET}", "../a/{DATASET}"), "lies outside of it"),
    ):
        with pytest.raises(UserError, match=message):
            TfdsSource(path)


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_a_class_that_the_data_set_names_is_not_imported(files, tmp_path, monkeypatch, key):
    (tmp_path / "canary_feature.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    path = shutil.copytree(files, tmp_path / "copy")
    written = json.loads((path / "features.json").read_text())
    written["featuresDict"]["features"]["more"] = {key: "canary_feature.Feature", "content": {}}
    (path / "features.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"names the class 'canary_feature\.Feature', .* not loaded"):
        TfdsSource(path)
    assert not (tmp_path / "ran").exists()


def test_features_of_tensorflow_are_refused_with_the_remedy(files, tmp_path):
    path = shutil.copytree(files, tmp_path / "copy")
    written = json.loads((path / "features.json").read_text())
    name = "tensorflow_datasets.core.features.video_feature.Video"
    written["featuresDict"]["features"]["video"] = {"pythonClassName": name, "video": {}}
    (path / "features.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"need TensorFlow .*write it with media files as features\.Text"):
        TfdsSource(path)


def test_a_table_has_captions_of_clips_and_windows(files, tmp_path):
    plain, table = TfdsSource(files), tmp_path / "table.jsonl"
    free = TfdsSource(files, captions_required=False)
    captions = dict[int, tuple[str, ...]]()
    for index in range(len(free)):
        with contextlib.suppress(BadClip):
            captions[index] = free[index].captions
    bare, same, other, *_ = sorted(captions, key=captions.__getitem__)
    assert captions[bare] == ()
    names = {index: plain.source_id(index) for index in captions}
    rows = {names[other]: "another", f"{names[bare]}#0-1": "begins", "tiny_clips/7": "nobody"}
    table.write_text("\n".join(json.dumps({"file": name, "caption": text}) for name, text in rows.items()))
    source = TfdsSource(files, captions=table)
    assert (source[same].captions, source[other].captions) == (captions[same], ("another",))
    assert source.window(bare, 0, 1).captions == ("begins",)
    windows = ((same, 0, 1), (bare, 0, 1), (bare, 2, 3))
    assert [source.lacks_caption(*window) for window in windows] == [False, False, True]
    with pytest.raises(BadClip, match="has captions of windows only"):
        source[bare]
    with pytest.raises(BadClip, match="has no caption"):
        plain[bare]
    assert (source.missing, source.retold) == (["tiny_clips/7"], 2)
    assert [source.origin(i) == plain.origin(i) for i in (same, other, bare)] == [True, False, False]


def test_captions_may_be_absent_where_they_are_not_needed(tmp_path):
    write_clip(tmp_path / "a.gif", drawn(2, 1), fps=10.0)
    path = write(tmp_path / "written", {"video": TEXT}, train=[{"video": (tmp_path / "a.gif").read_bytes()}])
    for need in (None, False):
        source = TfdsSource(path, captions_required=need)
        assert (source.captions_required, source[0].captions) == (False, ())
    with pytest.raises(UserError, match=r"has no feature 'caption', only video: rename one, or write data\.captions"):
        TfdsSource(path)
