from importlib import metadata

import jax

from sora_jax.core.versions import changes, own_version, versions


def test_versions_of_what_training_rests_on():
    found = versions()
    assert list(found) == [
        "python",
        "jax",
        "jaxlib",
        "flax",
        "orbax-checkpoint",
        "optax",
        "grain",
        "numpy",
        "av",
        "sora_jax",
    ]
    assert found["jax"] == jax.__version__
    assert changes(found, found) == ""


def test_only_what_may_change_bits_is_told():
    old = {"jax": "1", "optax": "2", "sora_jax": "3", "grain": "4"}
    assert changes(old, {**old, "grain": "5"}) == ""
    assert changes(old, {**old, "jax": "9", "sora_jax": "8"}) == "jax 1 is now 9, sora_jax 3 is now 8"
    assert changes({}, old).startswith("jax unknown is now 1")


def test_a_checkout_that_is_not_installed_says_so(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert own_version() == "not installed"
