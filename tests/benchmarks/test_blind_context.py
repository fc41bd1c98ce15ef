"""The benchmark of blind clips beside gives the times of all three on the same videos."""

import pytest

from sora_jax.benchmarks import blind_context
from sora_jax.experiment.settings import read_settings
from tests import toy


def test_controls_are_as_large_as_the_videos_and_apart_from_them_where_blind():
    settings = read_settings(toy.get_config())
    canvases = blind_context.canvases_of(settings, (5, 16, 16), count=3)
    patch = settings.transformer.patch
    assert {canvas.context[0].tokens(patch) for canvas in canvases} == {8}
    plain, blind = (blind_context.batches_of(settings, canvases, blind=one)[0] for one in (False, True))
    assert (plain.pack["segment_BL"] > 0).sum() == 2 * (blind.pack["segment_BL"] > 0).sum() == 48
    assert blind.apart is not None
    assert (blind.apart.pack["segment_BL"] > 0).sum() == 24


@pytest.mark.slow
def test_it_measures_all_three():
    settings = read_settings(toy.get_config())
    figures = blind_context.figures_of(settings, (5, 16, 16), steps=2, videos=2, rounds=1, clock="wall")
    values = {figure.name: figure.value for figure in figures}
    assert values["gain"] == pytest.approx(values["seconds_plain"] / values["seconds_blind"])
    assert min(values.values()) > 0
