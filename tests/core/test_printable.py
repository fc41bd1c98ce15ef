"""Names of strangers on a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.core.printable import printable


@given(st.text(st.characters()))
def test_what_is_shown_is_one_line_that_can_be_written(text):
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dogs/Käfer 赤い丸 🐕.mp4", "dogs/Käfer 赤い丸 🐕.mp4"),
        ("a\x1b[2J\nERROR: all is lost", r"a\x1b[2J\nERROR: all is lost"),
        ("\udcff.mp4", r"\udcff.mp4"),
        ("cod\u202e4pm.exe", r"cod\u202e4pm.exe"),
        ("a\0b", r"a\x00b"),
    ],
)
def test_what_moves_a_cursor_is_written_out(text, shown):
    assert printable(text) == shown
