"""The TPU kernels compile for TPUs that are not here: described slices of each generation."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("libtpu", reason="pip install libtpu to compile for a TPU that is not here")

_PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from sora_jax.core.mesh import MeshConfig, make_mesh
from sora_jax.core.sharding import spec
from sora_jax.nn.attention import attend

topology, backend, exchange, length = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
mesh = make_mesh(MeshConfig(data=1, fsdp=1, sequence=None, tensor=1), devices)

def loss(query, key, value, segment):
    mixed = attend(query, key, value, segment, segment, backend=backend, exchange=exchange)
    return jnp.sum(mixed.astype(jnp.float32) ** 2)

def described(names, shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec(names)))

with jax.set_mesh(mesh):
    x = described(("batch", "length", "heads", None), (1, length, 2, 128), jnp.bfloat16)
    segment = described(("batch", "length"), (1, length), jnp.int32)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, segment).compile()
text = compiled.as_text()
print("kernels:", text.count("tpu_custom_call"), "permutes:", "collective-permute" in text)
"""


@pytest.mark.parametrize(
    ("topology", "backend", "exchange", "length"),
    [
        ("v5p:2x2x1", "auto", "gather", 4096),
        ("v5p:4x4x4", "auto", "ring", 1_048_576),
        ("v5e:2x2", "auto", "ring", 8192),
        ("v6e:2x2", "pallas_tpu", "gather", 4096),
        ("v5p:2x2x1", "splash", "gather", 4096),
    ],
)
def test_attention_compiles_for_a_described_slice(topology, backend, exchange, length):
    environment = {
        "PATH": "/usr/bin:/bin",
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "PYTHONPATH": ":".join(sys.path),
    }
    command = [sys.executable, "-c", _PROGRAM, topology, backend, exchange, str(length)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "kernels: 0" not in done.stdout
    assert done.stdout.strip().endswith(f"permutes: {exchange == 'ring'}")
