"""Figures go where the command line says."""

import importlib

import pytest
from absl.flags import FLAGS

from tests.conftest import ROOT

MODULES = [path.stem for path in sorted((ROOT / "sora_jax" / "benchmarks").glob("*.py")) if "_JSON" in path.read_text()]


@pytest.mark.parametrize("name", MODULES)
def test_figures_may_go_to_a_home(name, monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    module, others = importlib.import_module(f"sora_jax.benchmarks.{name}"), set(FLAGS)
    try:
        module._FLAGS.define()
        FLAGS["json"].parse("~/figures.json")
        assert module._JSON.value == "/homes/me/figures.json"
    finally:
        for flag in set(FLAGS) - others:
            delattr(FLAGS, flag)
