"""Held-out clips that cannot be used are counted and left out: among few, chance alone makes many of them bad."""

import dataclasses

import pytest

from sora_jax.core.errors import UserError
from sora_jax.data.fitting import Collection
from sora_jax.experiment.heldout import prepare_heldout
from sora_jax.experiment.settings import read_settings
from sora_jax.train.workdir import Workdir
from tests.preparation.test_encode import LIMITS, Codec, Source


def prepared(toy_config, tmp_path, *, bad):
    """Returns what is prepared of up to 5 of 9 held-out clips, the ones numbered by `bad` torn."""
    limits = dataclasses.replace(LIMITS, max_bad_share=0.0)
    clips = Collection(name="main", source=Source(3), limits=limits, heldout=Source(9, bad=bad))
    settings = read_settings(toy_config())
    return prepare_heldout(Workdir(tmp_path), settings, [clips], Codec(), count=5, batch=2)


def test_bad_ones_are_left_out_and_counted(toy_config, tmp_path, caplog):
    found = prepared(toy_config, tmp_path, bad=(2, 6))
    assert found.source_ids() == ["clip000", "clip004", "clip008"]
    told = "main: 3 of 5 held-out clips could be used; "
    assert told in caplog.text
    assert f"{tmp_path / 'heldout' / 'skipped.jsonl'} names the others" in caplog.text


def test_none_of_them_is_a_mistake_that_is_told(toy_config, tmp_path):
    with pytest.raises(UserError, match=r"main: none of 5 held-out clips could be used; .* raise data\.heldout_share"):
        prepared(toy_config, tmp_path, bad=range(9))
