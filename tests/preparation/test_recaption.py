"""Captions of a collection, written anew: what is there after it, however often it was stopped."""

import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from sora_jax.core.errors import DataError, UserError
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.fitting import ClipBudget, Collection
from sora_jax.data.sources.caption_tables import read_table
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.preparation.caption_filters import DraftFilters
from sora_jax.preparation.caption_rows import CaptionRows
from sora_jax.preparation.drafts import Draft, Drafts
from sora_jax.preparation.recaption import recaption
from tests.conftest import ROOT
from tests.preparation.test_caption_filters import CONFIG

LIMITS = ClipBudget(
    stride=(1, 1, 1),
    min_tokens=1,
    max_tokens=99,
    max_frames=9,
    tokenizer=BYTE_TOKENIZER,
    max_text_tokens=12,
    max_bad_share=0.5,
)


class Numbered:
    """Clips that are called by their numbers, of which `bad` cannot be read; the odd ones have a caption."""

    def __init__(self, count, *, bad=(), names=None):
        self._names = names or [f"{number}.mp4" for number in range(count)]
        self._bad = bad

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        if index in self._bad:
            raise BadClip(self.source_id(index), "is torn")
        pixels_THWC = np.full((1, 2, 2, 3), index % 256, np.uint8)
        return Clip(
            pixels_THWC=pixels_THWC, fps=1.0, captions=("own",) if index % 2 else (), source_id=self.source_id(index)
        )

    def source_id(self, index):
        return self._names[index]

    def origin(self, index):
        return str(index)


class Toy:
    """Describes a clip by its brightness, but `silent` ones, of which it says nothing, and `refuses`."""

    def __init__(self, *, silent=(), refuses=(), pause=0.0, name="toy"):
        self.by = {"model": name}
        self.seen = []
        self._silent, self._refuses, self._pause = silent, refuses, pause

    def read(self, source, index):
        return source[index]

    def describe(self, clips):
        time.sleep(self._pause)
        return [self._describe(clip) for clip in clips]

    def _describe(self, clip):
        self.seen.append(clip.source_id)
        number = int(clip.pixels_THWC[0, 0, 0, 0])
        if number in self._refuses:
            return BadClip(clip.source_id, "no words")
        text = "" if number in self._silent else f"a brightness of {number}"
        return Drafts(captions=(Draft(text=text),), fields={"subject": "grey"})


def write(output, source, describer, *, config=CONFIG, limits=LIMITS, **options):
    filters = DraftFilters(config, tokenizer=BYTE_TOKENIZER, max_tokens=12)
    collection = Collection(name="main", source=source, limits=limits, readers=1)
    with CaptionRows(output) as rows:
        return recaption(collection, describer, filters, config, rows, **options)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_clip_has_a_row_or_a_reason(tmp_path, capsys):
    output = tmp_path / "deep" / "captions.jsonl"
    found = write(output, Numbered(9, bad=(2,)), Toy(silent=(3, 4), refuses=(6,)))
    assert [row["file"] for row in rows(output)] == [f"{number}.mp4" for number in (0, 1, 3, 5, 7, 8)]
    first, second, third = rows(output)[:3]
    assert (first["captions"], first["weights"]) == (["a brightness of 0"], [0.95])
    assert (second["captions"], second["weights"]) == (["a brightness of 1", "own"], [0.95, 0.05])
    assert third["captions"] == ["own"], "better than none"
    assert (first["fields"], first["by"]) == ({"subject": "grey"}, {"model": "toy", "choice": CONFIG.choice})
    failures = {row["file"]: row["reason"] for row in rows(output.with_suffix(".failed.jsonl"))}
    assert list(failures) == ["2.mp4", "4.mp4", "6.mp4"]
    assert failures["2.mp4"] == "is torn"
    assert failures["4.mp4"] == "its new caption has 0 words, under 2 (recaption.min_words)"
    assert (found.written, found.failed, found.kept_own, found.refused) == (6, 3, 1, {"min_words": 2})
    said = capsys.readouterr().out
    assert "6 of 9 clips have a row" in said
    assert "2 captions refused by recaption.min_words" in said
    assert read_table(output)["1.mp4"][0].weight == 0.95, "training reads it"


def test_what_is_there_is_not_written_again(tmp_path):
    output = tmp_path / "captions.jsonl"
    source = Numbered(9, bad=(2,))
    write(output, source, Toy(), count=5)
    text = output.read_text()
    assert len(rows(output)) == 4
    again = Toy()
    found = write(output, source, again)
    assert again.seen == [f"{number}.mp4" for number in range(5, 9)]
    assert (found.already_done, found.written, found.failed) == (4, 4, 1)
    assert output.read_text().startswith(text)
    other = Toy(name="other")
    write(output, source, other)
    assert len(other.seen) == 8, "another model writes captions of its own"
    with pytest.raises(UserError, match="was begun with other keys"):
        write(output, source, Toy(), config=dataclasses.replace(CONFIG, min_words=1))


def test_what_failed_is_tried_again_where_that_is_asked_for(tmp_path):
    output = tmp_path / "captions.jsonl"
    write(output, Numbered(6), Toy(refuses=(1, 2)))
    left = Toy()
    write(output, Numbered(6), left)
    assert left.seen == [], "not by itself"
    found = write(output, Numbered(6), left, retry_failed=True)
    assert left.seen == ["1.mp4", "2.mp4"]
    assert found.failed == 0
    assert output.with_suffix(".failed.jsonl").read_text() == ""
    assert len(rows(output)) == 6


def test_too_many_failures_end_it_after_all_is_written(tmp_path):
    output = tmp_path / "captions.jsonl"
    few = dataclasses.replace(LIMITS, max_bad_share=0.2)
    with pytest.raises(DataError, match=r"2 of 6 clips have no captions, more than the share of 0.2"):
        write(output, Numbered(6, bad=(0, 1)), Toy(), limits=few)
    assert len(rows(output)) == 4


def test_clips_of_one_name_have_one_row(tmp_path):
    output = tmp_path / "captions.jsonl"
    write(output, Numbered(3, names=["a", "b", "a"]), Toy())
    assert [(row["file"], row["captions"][0]) for row in rows(output)] == [
        ("a", "a brightness of 0"),
        ("b", "a brightness of 1"),
    ]


def test_half_a_line_is_dropped_and_its_clip_described_again(tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "captions.jsonl"
    write(whole, Numbered(9), Toy())
    for length in (1, 20, 60):
        output.write_bytes(whole.read_bytes()[:-length])
        write(output, Numbered(9), Toy())
        assert output.read_bytes() == whole.read_bytes()
    output.write_bytes(whole.read_bytes()[:-60] + bytes(60))
    write(output, Numbered(9), Toy())
    assert output.read_bytes() == whole.read_bytes()


def test_what_stops_it_leaves_what_was_done(tmp_path):
    output, whole = tmp_path / "captions.jsonl", tmp_path / "whole.jsonl"

    def stop(done):
        if done >= 8:
            raise UserError("stop")

    with pytest.raises(UserError, match=r"stop"):
        write(output, Numbered(20), Toy(), progress=stop)
    assert len(rows(output)) == 8
    write(output, Numbered(20), Toy())
    write(whole, Numbered(20), Toy())
    assert output.read_bytes() == whole.read_bytes()


def test_files_of_others_are_left_alone(tmp_path):
    output = tmp_path / "captions.jsonl"
    for text in ('{"file": "a.mp4", "caption": "mine"}\n', '{"file": "a.mp4", "caption": "its only line"}'):
        output.write_text(text)
        with pytest.raises(UserError, match=r"has lines that recaption did not write"):
            write(output, Numbered(2), Toy())
        assert output.read_text() == text
    for text in ('{"file": \n', "[" * 100_000 + "\n", "notes"):
        output.write_text(text)
        with pytest.raises(UserError, match="is no row of captions"):
            write(output, Numbered(2), Toy())
        assert output.read_text() == text
    with pytest.raises(UserError, match=r"must end in .jsonl, not '.csv'"):
        write(tmp_path / "captions.csv", Numbered(2), Toy())


def test_two_processes_do_not_write_one_file(tmp_path):
    output = tmp_path / "captions.jsonl"
    with CaptionRows(output), pytest.raises(UserError, match=r"another process is writing"):
        write(output, Numbered(2), Toy())


# One process that imports, and children that are killed: starting Python twenty times would take most of a minute.
_SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
from tests.preparation.test_recaption import COUNT, Numbered, Toy, write

output, chance, kills = Path(sys.argv[1]), random.Random(0), 0
for _ in range(20):
    before = output.stat().st_size if output.exists() else 0
    child = os.fork()
    if not child:
        write(output, Numbered(COUNT, bad=(7, 99)), Toy(refuses=(33,), pause=0.01))
        os._exit(0)
    while not output.exists() or output.stat().st_size == before:
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
assert kills == 20, kills
"""
COUNT = 250


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "captions.jsonl"
    write(whole, Numbered(COUNT, bad=(7, 99)), Toy(refuses=(33,)))
    command = [sys.executable, "-c", _SCRIPT, str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size < whole.stat().st_size, "all of them were in the middle"
    write(output, Numbered(COUNT, bad=(7, 99)), Toy(refuses=(33,)))
    assert output.read_bytes() == whole.read_bytes()
    names = [row["file"] for row in rows(output)]
    assert len(names) == len({*names}) == COUNT - 3
    failures = [path.with_suffix(".failed.jsonl").read_bytes() for path in (output, whole)]
    assert failures[0] == failures[1]
