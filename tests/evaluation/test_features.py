"""Networks from files: rows in the order of the clips, whatever their sizes, and files that say what they hold."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from sora_jax.core.errors import UserError
from sora_jax.evaluation.distances import frechet_distance, kernel_distance
from sora_jax.evaluation.features import load_image_features, load_text_features, load_video_features
from sora_jax.models import i3d
from sora_jax.models.random_features import random_features
from sora_jax.video.pixels import to_float
from tests.models.test_clip_scores import write_whole_clip
from tests.models.test_onnx import open_nsfw_file, real, write


def clips_of(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]


def mean_of(of, **changes):
    """Returns a network whose row is the mean over everything that it looks at."""
    axes = {"frame": (1, 2), "clip": (1, 2, 3)}[of]
    load = {"frame": load_image_features, "clip": load_video_features}[of]
    whole = {"width": 3, "fit": lambda items: items, "apply": lambda _, x: x.mean(axis=axes)}
    return dataclasses.replace(load(None), **whole | changes)


def test_rows_come_in_the_order_of_clips_of_any_size():
    clips = clips_of((3, 16, 16), (2, 8, 24), (3, 16, 16), (1, 8, 24))
    videos, images = mean_of("clip"), mean_of("frame")
    np.testing.assert_allclose(videos(clips), [clip.mean(axis=(0, 1, 2)) for clip in clips], rtol=1e-5)
    np.testing.assert_allclose(images(clips), np.concatenate([clip.mean(axis=(1, 2)) for clip in clips]), rtol=1e-5)
    assert videos([]).shape == (0, 3)


def test_random_features_are_those_of_the_clip_alone():
    videos = load_video_features(None)
    assert (videos.name, videos.of, load_image_features(None).of) == ("random", "clip", "frame")
    (clip,) = clips_of((1, 8, 8))
    expected = np.asarray(jax.jit(random_features)(to_float(clip[None])))
    np.testing.assert_allclose(videos([clip]), expected, rtol=1e-4, atol=1e-5)


def test_batches_are_filled_up_and_cut_again():
    sizes = []

    def fit(items):
        sizes.append(len(items))
        return items

    network = mean_of("frame", fit=fit, at_once=2)
    (clip,) = clips_of((37, 4, 4))
    np.testing.assert_allclose(network([clip]), clip.mean(axis=(1, 2)), rtol=1e-5)
    network([clip[:2]])
    assert sizes == [16, 16, 8, 2]  # of eight devices, and of one


def test_a_clip_that_is_too_short_is_a_fault_of_the_caller():
    with pytest.raises(AssertionError):
        mean_of("clip", fewest_frames=9)(clips_of((8, 4, 4)))


def test_a_file_says_by_its_names_which_network_it_holds(tmp_path):
    path = tmp_path / "any.safetensors"
    save_file({name: np.zeros(shape, np.float32) for name, shape in i3d.shapes().items()}, path)
    network = load_video_features(path)
    assert (network.name, network.width, network.fewest_frames) == ("i3d", 400, 9)
    assert network.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=r"any.safetensors holds i3d, which is none for images: give the weights of "):
        load_image_features(path)
    save_file({"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}, path)
    with pytest.raises(UserError, match=r"holds no network that is known here: give the weights of .*i3d"):
        load_video_features(path)


def test_a_clip_is_read_for_texts_and_for_images(tmp_path):
    folder = write_whole_clip(tmp_path)
    both, images = load_text_features(folder), load_image_features(folder)
    assert (images.name, images.of, images.width) == ("clip", "frame", both.texts.width)
    assert both.images.digest == images.digest
    clips = clips_of((2, 20, 16), (1, 20, 16))
    words = ["red", "blue " * 90]
    assert both.cut(words) == 1
    first, second = both.cosines(words, clips)
    assert (first.shape, second.shape) == ((2,), (1,))
    point, text = both.images(clips)[2], both.texts(words)[1]
    assert second[0] == pytest.approx(point @ text / np.linalg.norm(point) / np.linalg.norm(text), abs=1e-5)


def test_a_foreign_onnx_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a.onnx is no ONNX file: it holds no operation"):
        load_image_features(write(tmp_path / "a.onnx", [], []))


def blurred(clip_THWC, times):
    """Returns the clip after so many passes of a filter of three pixels along rows and columns."""
    x = clip_THWC.astype(np.float32)
    for _ in range(times):
        for axis in (1, 2):
            x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4
    return np.rint(x).astype(np.uint8)


@real
@pytest.mark.slow
def test_real_features_order_truth_blur_and_more_blur():
    """Noise in boxes of colour stands in for photographs; the halves of one set lie nearest."""
    network = load_image_features(open_nsfw_file())
    assert (network.name, network.width, network.of) == ("open_nsfw", 1024, "frame")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (48, 8, 8, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    truth, other = frames[::2], frames[1::2]
    sets = [network([clip]) for clip in (other, blurred(other, 2), blurred(other, 16))]
    reference = network([truth])
    frechet = [frechet_distance(reference, made) for made in sets]
    kernel = [kernel_distance(reference, made).value for made in sets]
    assert frechet == sorted(frechet)
    assert kernel == sorted(kernel)
    assert frechet[1] > 1.1 * frechet[0]
