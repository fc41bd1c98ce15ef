"""A table tells drawn clips anew, by their names; what it does not name stays as it is."""

import json

import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.sources.base import fingerprint
from sora_jax.data.sources.retold import RetoldSource
from sora_jax.data.sources.shapes_world import ShapesWorld
from tests import small

WORLD = ShapesWorld(
    small.world_config(seed=1, num_clips=4, sides=((16, 16),), frames=(5,), image_share=0.5, fps=(8.0,))
)


@pytest.fixture
def table(tmp_path):
    rows = [
        {"file": "shapes-train-1-2", "captions": ["told anew", "in short"], "weights": [3, 1]},
        {"file": "shapes-train-1-3", "caption": " "},
        {"file": "shapes-train-1-0#0-4", "caption": "a window"},
        {"file": "shapes-train-1-9", "caption": "nobody"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "t.jsonl"


def test_named_clips_are_told_anew_and_the_others_keep_their_own(table):
    source = RetoldSource(WORLD, table)
    assert (len(source), source.retold) == (4, 1)
    assert source.missing == ["shapes-train-1-9", "shapes-train-1-0#0-4"]
    assert (source[2].captions, source[2].weights) == (("told anew", "in short"), (3.0, 1.0))
    assert (source[2].pixels_THWC == WORLD[2].pixels_THWC).all()
    for index in (0, 1, 3):
        assert source[index].captions == WORLD[index].captions
    same = [source.origin(index) == WORLD.origin(index) for index in range(4)]
    assert same == [True, True, False, True]
    before = fingerprint(source)
    table.write_text(table.read_text().replace("[3, 1]", "[2, 1]"))
    assert fingerprint(RetoldSource(WORLD, table)) != before


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"the caption file .*t\.csv does not exist"):
        RetoldSource(WORLD, tmp_path / "t.csv")
