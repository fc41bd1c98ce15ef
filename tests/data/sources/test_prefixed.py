"""A phrase before every caption."""

import pickle

import numpy as np
import pytest

from sora_jax.data.curation.source import VideoFiles
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.base import FolderSource, Source, fingerprint
from sora_jax.data.sources.prefixed import PrefixedSource, prefix_faults
from sora_jax.data.tokens import BYTE_TOKENIZER


@pytest.fixture
def plain(tmp_path) -> FolderSource:
    for name, caption in (("a.png", "a dog"), ("b.png", "")):
        write_clip(tmp_path / name, np.full((1, 16, 16, 3), 90, np.uint8), fps=1.0)
        (tmp_path / name).with_suffix(".txt").write_text(caption)
    (tmp_path / "a.0.txt").write_text("un chien")
    return FolderSource(tmp_path, captions_required=False)


def test_every_caption_begins_with_the_phrase_and_nothing_else_changes(plain):
    source: Source = PrefixedSource(plain, " in  sks style,")
    assert isinstance(source, VideoFiles)
    assert len(source) == 2
    begun = ("in sks style, un chien", "in sks style, a dog")
    for clip in (source[0], source.window(0, 0, 0), source.thumbnails(0, short_side=16)):
        assert clip.captions == begun
        assert (clip.source_id, clip.fps) == ("a.png", 1.0)
        np.testing.assert_array_equal(clip.pixels_THWC, plain[0].pixels_THWC)
    assert source[1].captions == ()
    assert (source.size(0), source.source_id(1)) == (plain.size(0), "b.png")
    assert pickle.loads(pickle.dumps(source))[0].captions == begun


def test_the_phrase_counts_in_the_fingerprint(plain):
    sources = (plain, PrefixedSource(plain, "one"), PrefixedSource(plain, "two"))
    assert len({fingerprint(source) for source in sources}) == 3
    assert fingerprint(PrefixedSource(plain, "one ")) == fingerprint(sources[1])


def test_a_phrase_must_say_something_and_leave_room():
    assert prefix_faults(None, "shapes", BYTE_TOKENIZER, max_text_tokens=4) == []
    assert prefix_faults("two words", "folder", BYTE_TOKENIZER, max_text_tokens=4) == []
    assert "writes its own" in prefix_faults("words", "shapes", BYTE_TOKENIZER, max_text_tokens=4)[0]
    assert (
        "has 1 text tokens, and text.max_tokens is 4"
        in prefix_faults(" \u200b", "folder", BYTE_TOKENIZER, max_text_tokens=4)[0]
    )
    assert (
        "has 4 text tokens, and text.max_tokens is 4"
        in prefix_faults("of three words", "tfds", BYTE_TOKENIZER, max_text_tokens=4)[0]
    )
