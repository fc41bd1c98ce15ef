"""Commands do not look for a TPU that is not there, and for every one that may be."""

import os
import subprocess
import sys

import jax
import pytest

from sora_jax.core import platforms


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with libtpu, without a device or a variable that says something; as jax was found, it is left."""
    before = jax.config.jax_platforms
    (tmp_path / "dev" / "vfio").mkdir(parents=True)
    vendor = tmp_path / "sys" / "bus" / "pci" / "devices" / "0000:00:05.0" / "vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x8086\n")
    for name in [name for name in os.environ if name.startswith(platforms._TOLD)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(platforms.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    jax.config.update("jax_platforms", None)
    yield tmp_path
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    jax.config.update("jax_platforms", before)


def chosen(root):
    platforms.leave_out_tpu(root)
    assert os.environ.get("JAX_PLATFORMS") == jax.config.jax_platforms
    return jax.config.jax_platforms


def test_a_machine_without_accelerators_computes_on_cpu(machine, monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # jax sets it there
    monkeypatch.setenv("TPU_LIBRARY_PATH", "libtpu.so")  # and libtpu this, as it is imported
    assert chosen(machine) == "cpu"


@pytest.mark.parametrize("device", ["accel0", "vfio/0", "nvidia0", "nvidiactl", "dxg", "kfd"])
def test_what_may_be_an_accelerator_is_left_to_jax(machine, device):
    (machine / "dev" / device).touch()
    assert chosen(machine) is None


def test_a_tpu_that_only_the_bus_shows_is_left_to_jax(machine):
    (machine / "sys" / "bus" / "pci" / "devices" / "0000:00:05.0" / "vendor").write_text("0x1ae0\n")
    assert chosen(machine) is None


@pytest.mark.parametrize("name", ["TPU_NAME", "TPU_WORKER_ID", "MEGASCALE_NUM_SLICES", "JAX_FORCE_TPU_INIT"])
def test_what_the_environment_says_of_a_tpu_is_left_to_jax(machine, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert chosen(machine) is None


def test_without_libtpu_nothing_is_chosen(machine, monkeypatch):
    monkeypatch.setattr(platforms.importlib.util, "find_spec", lambda name: None)
    assert chosen(machine) is None


def test_what_the_user_chose_stays(machine, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    platforms.leave_out_tpu(machine)
    assert os.environ["JAX_PLATFORMS"] == "tpu,cpu"
    assert jax.config.jax_platforms is None


def test_nothing_here_imports_jax():
    code = "import sys; from sora_jax.core import platforms; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
