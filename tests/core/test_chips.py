"""The table of chips finds the names that jax uses."""

import pytest

from sora_jax.core.chips import CHIPS, chip_of, peak_flops


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_a_device_is_found_by_its_kind(device_kind, name):
    assert chip_of(device_kind) is CHIPS[name]
    assert peak_flops(device_kind) == CHIPS[name].flops


@pytest.mark.parametrize("device_kind", ["cpu", "", "TPU v55", "NVIDIA A100-SXM4-40GB", "TPU v7"])
def test_other_devices_have_no_peak(device_kind):
    assert chip_of(device_kind) is None
    assert peak_flops(device_kind) is None


def test_what_is_stored_is_in_plain_units():
    for chip in CHIPS.values():
        assert 1e14 < chip.flops < 1e16
        assert 1e10 < chip.hbm < 1e12
        assert chip.network_bandwidth < chip.link_bandwidth < chip.hbm_bandwidth < 1e13
