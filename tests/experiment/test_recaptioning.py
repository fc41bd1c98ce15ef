"""What of a request to caption clips anew is refused before anything is read."""

import dataclasses

import pytest

from configs import base
from sora_jax.core.errors import UserError
from sora_jax.experiment import recaptioning
from sora_jax.experiment.recaptioning import RecaptionRequest
from sora_jax.preparation.caption_rows import CaptionRows

REQUEST = RecaptionRequest(
    output=None, workdir=None, data=None, server="http://localhost:1", model=None, count=None, retry_failed=False
)


@pytest.mark.parametrize(
    ("name", "refused"), [("captions.jsonl", True), ("a/metadata.csv", True), ("new.jsonl", False)]
)
def test_a_table_is_not_written_where_it_would_be_read_before_it_is_whole(tmp_path, name, refused):
    request = dataclasses.replace(REQUEST, data=str(tmp_path), output=tmp_path / name)
    if refused:
        with pytest.raises(UserError, match="would be read as the table of the folder"):
            recaptioning.caption_anew(request, base.get_config(), {})
    else:
        told = recaptioning._told(request, base.get_config())
        assert (told.data.source, told.data.path) == ("folder", str(tmp_path))


@pytest.mark.parametrize("known", ["mine.jsonl", "clips/../mine.jsonl", "link.jsonl", "~/mine.jsonl"])
def test_the_table_that_clips_have_now_is_known_however_it_is_spelt(tmp_path, monkeypatch, known):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "mine.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to("mine.jsonl")
    config = base.get_config()
    config.update_from_flattened_dict({"data.source": "folder", "data.path": "clips", "data.captions": known})
    request = dataclasses.replace(REQUEST, output=tmp_path / "mine.jsonl")
    with pytest.raises(UserError, match=r"is data\.captions, which the clips have now"):
        recaptioning.caption_anew(request, config, {})
    (tmp_path / "other").symlink_to("clips")
    request = dataclasses.replace(REQUEST, output=tmp_path / "other" / "captions.jsonl")
    with pytest.raises(UserError, match="would be read as the table of the folder"):
        recaptioning.caption_anew(request, config, {})


def test_nothing_is_left_where_no_caption_was_written(tmp_path):
    folder, output = tmp_path / "clips", tmp_path / "new.jsonl"
    folder.mkdir()  # without a clip
    request = dataclasses.replace(REQUEST, data=str(folder), output=output)
    for known in (False, True):
        if known:
            output.touch()
        with pytest.raises(UserError):
            recaptioning.caption_anew(request, base.get_config(), {})
        assert output.exists() == known


def test_a_table_that_another_process_writes_is_refused_before_clips_are_listed(tmp_path):
    folder, output = tmp_path / "clips", tmp_path / "new.jsonl"
    folder.mkdir()  # where there is no clip, so that listing them would be refused as well
    request = dataclasses.replace(REQUEST, data=str(folder), output=output)
    with CaptionRows(output), pytest.raises(UserError, match="another process is writing"):
        recaptioning.caption_anew(request, base.get_config(), {})
