"""Runs before jax is imported: eight simulated CPU devices, one shared compilation cache."""

import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
_CACHE = Path(tempfile.gettempdir()) / "sora_jax_test_compilation_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def pytest_configure() -> None:
    """Marks absl's flags as parsed: grain reads them in its workers."""
    from absl import flags

    flags.FLAGS.mark_as_parsed()
