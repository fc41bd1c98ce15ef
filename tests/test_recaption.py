"""`recaption --server` as a user runs it: from a folder to a table that training reads, by a server of this test."""

import json

import numpy as np

from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.base import FolderSource
from tests.conftest import SECRETS
from tests.fake_chat import fake_chat, says

TOLD = {"subject": "a dog", "motion": "left", "short": "A dog runs.", "detailed": "This video shows a dog that runs."}


def test_a_folder_is_captioned_by_a_server_and_goes_on_where_it_stopped(python, tmp_path):
    folder, table = tmp_path / "clips", tmp_path / "captions.jsonl"
    folder.mkdir()
    for number, frames in enumerate((5, 5, 1)):
        pixels = np.zeros((frames, 32, 32, 3), np.uint8) + 50 * np.arange(frames, dtype=np.uint8)[:, None, None, None]
        write_clip(folder / f"{number}.{'gif' if frames > 1 else 'png'}", pixels, fps=8.0)
    (folder / "0.txt").write_text("Rex")
    silent = [True]

    def answer(question):
        *pictures, _ = question["messages"][0]["content"]
        return says("I see nothing." if silent[0] and len(pictures) == 1 else f"<think>hm</think>{json.dumps(TOLD)}")

    with fake_chat(answer) as fake:
        command = ("-m", "sora_jax.recaption", f"--server={fake.url}", "--model=seer", f"--data={folder}")
        command += (f"--output={table}", "--config.recaption.server.frames=3", "--config.recaption.batch=2")
        failed = python(*command)
        assert failed.returncode == 66, failed.stderr
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        asked = len(fake.asked)
        silent[0] = False
        again = python(*command, "--retry_failed")
        assert again.returncode == 0, again.stderr
        assert len(fake.asked) == asked + 1, "only what had failed"
    assert asked == 2 + 2, "an answer of no use is asked for once more"
    assert {path for path in fake.paths if "models" not in path} == {"/v1/chat/completions"}
    assert {one["authorization"] for one in fake.headers} == {f"Bearer {SECRETS['SORA_CHAT_KEY']}"}
    assert fake.asked[0]["model"] == "seer"
    assert sorted(len(one["messages"][0]["content"]) for one in fake.asked) == [2, 2, 2, 4, 4]
    assert [row["file"] for row in rows] == ["0.gif", "1.gif"]
    assert set(rows[0]["captions"]) == {"Rex", "A dog runs.", "A dog that runs."}
    assert rows[1]["fields"] == {"subject": "a dog", "motion": "left"}
    assert "2.png" in (tmp_path / "captions.failed.jsonl").read_text() + failed.stderr
    source = FolderSource(folder, captions=table)
    assert [len(source[number].captions) for number in range(3)] == [3, 2, 2], "as data.captions reads it"
