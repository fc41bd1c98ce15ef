"""A source is a class and a row of the table: the one of docs/extending.md is opened as a run opens its clips."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.media.writer import encode_gif
from sora_jax.data.sources.table import SOURCES, FileSource
from sora_jax.experiment.datasets import open_collections
from sora_jax.experiment.settings import read_settings

PAGE = Path(__file__).parents[3] / "docs/extending.md"
PIXELS_THWC = np.full((5, 16, 16, 3), 64, np.uint8) * np.arange(1, 4, dtype=np.uint8)
GIF = encode_gif(PIXELS_THWC + np.arange(5, dtype=np.uint8)[:, None, None, None], fps=10.0)


@pytest.fixture
def zip_config(toy_config, monkeypatch):
    """A config whose source is the one of the page, added as it says."""
    section = PAGE.read_text(encoding="utf-8").partition("## Add a source of clips")[2]
    made = {"FileSource": FileSource}
    exec(section.partition("```python\n")[2].partition("```")[0], made)
    row = section.partition('The row is `"zip": ')[2].partition("`.")[0]
    monkeypatch.setitem(SOURCES, "zip", eval(row, made))
    config = toy_config()
    config.data.source = "zip"
    return config


def test_a_source_is_added_as_the_documentation_says(zip_config, tmp_path, caplog):
    zip_config.data.path = str(tmp_path / "clips.zip")
    with zipfile.ZipFile(zip_config.data.path, "w") as written:
        for name, data in {"b.gif": GIF, "a.gif": GIF, "a.txt": " grey\n", "b.json": "{}"}.items():
            written.writestr(name, data)
    settings = read_settings(zip_config)
    (collection,) = open_collections(settings)
    source = collection.source
    assert [source.source_id(number) for number in range(len(source))] == ["a.gif"]
    clip = source[0]
    assert (clip.captions, clip.pixels_THWC.shape, clip.fps) == (("grey",), PIXELS_THWC.shape, pytest.approx(10))
    assert "files without a caption are left out: b.gif" in caplog.text
    assert collection.limits.fit(source, 0).tokens > 0
    with zipfile.ZipFile(zip_config.data.path, "a") as written:
        written.writestr("b.txt", "darker")
    (more,) = open_collections(settings)
    assert len(more.source) == 2
    assert more.source.origin(0) == source.origin(0) != more.source.origin(1)


def test_it_says_what_it_needs(zip_config):
    with pytest.raises(UserError, match=r"'zip' needs a zip: pass --config\.data\.path=FILE\.zip"):
        read_settings(zip_config)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_source_in_files_says_what_path_it_needs(name, toy_config):
    config = toy_config()
    config.data.source = name
    with pytest.raises(UserError, match=f"{name!r} needs .*: pass --config.data.path="):
        read_settings(config)
