"""What to change first in a run, told from what it left."""

import json

import numpy as np
import pytest

from sora_jax.core.config import to_json
from sora_jax.data.shards.catalogue import read_words
from sora_jax.data.shards.files import Prepared
from sora_jax.data.shards.prepared import PreparedSet, ShardWriter
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.experiment.advice import _fall, advice
from sora_jax.experiment.caption_words import CaptionWords
from sora_jax.experiment.prompt_advice import prompt_advice
from sora_jax.experiment.settings import read_settings
from sora_jax.reports.run_page import write_report
from sora_jax.train.workdir import Workdir

HEADER = {
    "autoencoder": "ab",
    "text_encoder": "cd",
    "latent_mean": [0.0] * 4,
    "latent_scale": [1.0] * 4,
    "strides": [4, 4],
    "channels": 4,
}
PROMPT = "a red circle moves right"


def prepared(index, frames, caption, file_frames=None):
    """One sample of so many latent frames, of a file of so many frames."""
    latent = np.zeros((frames, 2, 2, 4), np.float32)
    shape = (1 + 4 * (frames - 1), 8, 8)
    return Prepared(
        latent_THWC=latent,
        fps=10.0,
        captions=(caption,),
        source_id=str(index),
        pixel_shape=shape,
        trimmed_frames=0,
        file_frames=file_frames,
    )


def advise(workdir, prompts):
    return prompt_advice(CaptionWords(workdir, read_settings(workdir.config())), prompts)


@pytest.fixture
def workdir(toy_config, tmp_path):
    """A run on a folder, all of whose stages are done; nothing in it is worth a word."""
    config = toy_config()
    config.data.source, config.data.path, config.data.max_frames = "folder", "/clips", 10
    config.sampling.prompts = (PROMPT,)
    config.stages.autoencoder.crops.buckets = ((9, 16, 16, 8),)
    run = Workdir(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (run.path / "config.json").write_text(to_json(config))
    with run:
        for name in config.run:
            run.finish_stage(name, {"kind": config.stages[name].kind})
        run.write_json("evaluation.json", {"autoencoder": {"psnr": 30.0, "psnr_resampled": 25.0}})
        write_clips(run, [(1, PROMPT), (2, "a cat"), (2, "a cat"), (3, "a dog")])
        write_losses(run, np.full(40, 0.5))
    return run


def write_clips(run, clips):
    with ShardWriter(run.prepared(), header=HEADER, tokenizer=BYTE_TOKENIZER, records_per_shard=3) as writer:
        for index, clip in enumerate(clips):
            writer.add(prepared(index, *clip))


def write_losses(run, losses):
    noise = np.random.default_rng(0).normal(scale=0.01, size=len(losses))
    lines = [{"stage": "videos", "step": step, "loss": float(loss)} for step, loss in enumerate(losses + noise)]
    (run.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_a_run_in_which_nothing_is_wrong_is_left_alone(workdir):
    assert advice(workdir) == []
    assert "What to change first" not in write_report(workdir.path, advice(workdir)).read_text()


def test_the_share_of_the_frames_that_is_used_is_told_where_it_is_known(workdir):
    for place in workdir.prepared().iterdir():
        place.unlink()
    write_clips(workdir, [(1, PROMPT, 1), (3, "a dog", 100), (3, "a cat", None), (2, "a cat", 5), (3, "a dog", 395)])
    (frames,) = advice(workdir)
    assert "is not used (23 of 500 frames in the files of videos, 4.6 %, are): take windows over" in frames


def test_overfitting_is_told_instead_of_advice_to_train_on(workdir):
    write_losses(workdir, np.linspace(0.5, 0.3, 40))
    path = workdir.path / "metrics.jsonl"
    rising = [
        {"stage": "videos", "step": step, "heldout_loss": loss} for step, loss in ((9, 0.6), (19, 0.5), (39, 0.52))
    ]
    path.write_text("\n".join([path.read_text(), *map(json.dumps, rising)]))
    (said,) = advice(workdir)
    assert said.startswith(
        "videos overfits: its loss on held-out clips was lowest at step 19, 0.5, and is 0.52 at the end, while that on "
        "its own clips fell from 0.4"
    )
    path.write_text(path.read_text().replace("0.52", "0.505"))
    (said,) = advice(workdir)
    assert said.startswith("the loss of videos still fell"), "so little is no rise"


def test_of_several_stages_of_the_autoencoder_the_longest_is_to_be_longer(workdir):
    config = workdir.config()
    config["run"] = ["autoencoder", "decoder", *config["run"][1:]]
    config["stages"]["decoder"] |= {"steps": config["stages"]["autoencoder"]["steps"] - 1}
    config["stages"]["decoder"]["crops"]["buckets"] = [[9, 16, 16, 8]]
    (workdir.path / "config.json").write_text(json.dumps(config))
    workdir.write_json("evaluation.json", {"autoencoder": {"psnr": 22.13, "psnr_resampled": 25.9}})
    (said,) = advice(workdir)
    assert said.endswith("so train it longer, stages.autoencoder.steps")


def test_clips_longer_than_what_the_autoencoder_was_trained_on_are_told(workdir):
    config = workdir.config()
    config["stages"]["autoencoder"]["crops"]["buckets"] = [[1, 16, 16, 8], [5, 16, 16, 8]]
    (workdir.path / "config.json").write_text(json.dumps(config))
    (windows,) = advice(workdir)
    assert windows.startswith(
        "clips of up to 9 frames were encoded, and the autoencoder was trained on windows of at most 5: what is"
    )
    assert windows.endswith("grid: give stages.autoencoder.crops.buckets windows of 9 frames")
    config["run"] = ["autoencoder", "prepare"]
    (workdir.path / "config.json").write_text(json.dumps(config))
    assert not any("windows of at most" in said for said in advice(workdir)), "nothing is made"


def test_everything_is_told_in_a_sentence_and_what_matters_most_first(workdir, toy_config):
    (workdir.path / "prepared").rename(workdir.path / "before")
    write_clips(workdir, [(1, "a cat"), (3, "a dog"), (3, "a cat"), (2, "a <b>")])
    write_losses(workdir, np.linspace(0.5, 0.3, 40))
    workdir.write_json("evaluation.json", {"autoencoder": {"psnr": 22.13, "psnr_resampled": 25.9}})
    frames, autoencoder, loss, prompts = advice(workdir)
    assert frames == (
        "2 of 3 videos are read up to data.max_frames 10, their first 0.9 s, and what follows in their files is not "
        "used: take windows over the whole of them, --config.data.curation.windows_per_file=8"
    )
    assert autoencoder.startswith(
        "the autoencoder gives clips back at 22.1 dB, and scaling them down to as few numbers"
    )
    assert autoencoder.endswith(
        "25.9 dB: no sample can be better than it gives back, so train it longer, stages.autoencoder.steps"
    )
    assert loss.startswith(
        "the loss of videos still fell by 10% in its last fifth: more steps would help, stages.videos"
    )
    assert prompts.startswith("sampling.prompts: no caption of this run has 'red', 'circle', 'moves', 'right': the")
    page = write_report(workdir.path, advice(workdir)).read_text()
    assert "What to change first</h2><ol><li>2 of 3 videos" in page
    assert "no caption of this run has &#x27;red&#x27;" in page


def test_windows_over_whole_files_are_not_cut_off(workdir, toy_config):
    (workdir.path / "prepared").rename(workdir.path / "before")
    write_clips(workdir, [(3, PROMPT)])
    assert len(advice(workdir)) == 1
    config = workdir.config()
    config["data"]["curation"]["windows_per_file"] = 4
    workdir.write_json("config.json", config)
    assert advice(workdir) == []


def test_files_that_are_read_to_their_end_are_not_cut_off(workdir):
    (workdir.path / "prepared").rename(workdir.path / "before")
    write_clips(workdir, [(3, PROMPT, 9), (3, PROMPT, 10), (3, PROMPT, 11)])
    assert advice(workdir) == []
    (workdir.path / "prepared").rename(workdir.path / "shorter")
    write_clips(workdir, [(3, PROMPT, 9), (3, PROMPT, 11), (3, PROMPT, 0)])
    (said,) = advice(workdir)
    assert said.startswith("2 of 3 videos are read up to data.max_frames 10")


def test_words_are_those_of_all_shards_and_unknown_in_older_ones(workdir):
    known = read_words(workdir.prepared())
    assert known == {"a", "red", "circle", "moves", "right", "cat", "dog"}
    assert len(PreparedSet(workdir.prepared())) == 4
    (said,) = advise(workdir, ["a blue cat", "9 w0 w1 w2 w3 w4 w5 w6 w7"])
    assert "no caption of this run has 'blue', '9', 'w0', 'w1', 'w2', 'w3', 'w4', 'w5' and 2 more: " in said
    assert advise(workdir, ["A CAT"]) == []
    path = next(workdir.prepared().glob("*.index.npz"))
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "words"}
    np.savez(path, **kept)
    assert read_words(workdir.prepared()) is None
    assert advise(workdir, ["a blue cat"]) == []


def test_a_prompt_that_says_less_than_each_caption_with_its_words_is_told(workdir):
    (workdir.path / "prepared").rename(workdir.path / "before")
    assert advise(workdir, ["a circle"]) == [], "nothing is known"
    write_clips(workdir, [(1, PROMPT), (2, "a red circle"), (3, "a cat"), (2, "")])
    enough = ["a red circle", "a red cat", "a cat moves", "A Red Circle!", "circle right cat"]
    assert advise(workdir, enough) == []
    said = advise(workdir, ["a circle", *enough, "moves right", "a circle"])
    assert said == [
        "each caption of this run with the words of 'a circle' says more, such as 'a red circle': say as much, or what "
        "is left out may not be there at all",
        f"each caption of this run with the words of 'moves right' says more, such as {PROMPT!r}: say as much, or what "
        "is left out may not be there at all",
    ]
    for shard in workdir.prepared().glob("*.arrayrecord"):
        shard.write_bytes(shard.read_bytes().replace(b"fps", b"fPs"))
    assert advise(workdir, ["a circle"]) == []


def test_a_loss_within_its_noise_does_not_fall():
    noise = np.random.default_rng(1).normal(size=100)
    assert _fall((1 + 0.3 * noise).tolist()) is None
    assert _fall([1.0] * 19) is None
    assert _fall(np.linspace(1, 0.99, 100).tolist()) is None
    # Means of the lines from 60 and from 80 on: 1 - 0.5 * 69.5 / 99 and 1 - 0.5 * 89.5 / 99.
    assert _fall(np.linspace(1, 0.5, 100).tolist()) == pytest.approx((0.5 * 20 / 99) / (1 - 0.5 * 69.5 / 99))


def test_a_damaged_run_gets_no_advice_and_a_report(workdir, caplog):
    (workdir.path / "evaluation.json").write_text("{")
    assert advice(workdir) == []
    assert "there is no advice on this run" in caplog.text
