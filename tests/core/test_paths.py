"""A ~ is a home, wherever a path is written."""

import pytest
from absl import flags

from sora_jax.core import paths
from sora_jax.core.errors import UserError


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("~/runs/a", "/homes/me/runs/a"),
        ("~", "/homes/me"),
        ("./~/a", "./~/a"),
        ("a~b", "a~b"),
        ("runs/~", "runs/~"),
        ("gs://bucket/~a", "gs://bucket/~a"),
        ("", ""),
    ],
)
def test_a_tilde_at_the_beginning_is_a_home(written, path):
    assert paths.expanded(written) == path


def test_a_home_that_is_not_there_is_told():
    with pytest.raises(UserError, match=r"~nobody-here/a names no home of this machine: .*, or \./~nobody-here/a for"):
        paths.expanded("~nobody-here/a")


def test_flags_of_paths_are_expanded(monkeypatch):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    define, define_multi = flags.DEFINE, flags.DEFINE_multi
    monkeypatch.setattr(flags, "DEFINE", lambda *a, **k: define(*a, **k, flag_values=values))
    monkeypatch.setattr(flags, "DEFINE_multi", lambda *a, **k: define_multi(*a, **k, flag_values=values))
    one, none, several = (
        paths.define_path("one", "runs/base", ""),
        paths.define_path("none", None, ""),
        paths.define_paths("several", ""),
    )
    values(["x", "--one=~/a", "--several=~/b", "--several=c"])
    assert (one.value, none.value, several.value) == ("/homes/me/a", None, ["/homes/me/b", "c"])
    with pytest.raises(flags.IllegalFlagValueError, match="names no home"):
        values(["x", "--one=~nobody-here/a"])
