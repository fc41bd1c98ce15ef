"""What each accelerator can do at best: memory, arithmetic, links. Plans and the log's MFU read it here.

Sources: TPUs: the pages of Google Cloud on v4, v5e, v5p and v6e (docs.cloud.google.com/tpu/docs), for memory what the
compiler says that a program may use. GPUs: NVIDIA's data sheets of H100 SXM and H200 SXM, dense bfloat16.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator.

    Attributes:
      kind: How jax calls it, the beginning of `device_kind`.
      flops: Peak of dense bfloat16 multiplications and additions, FLOP/s.
      hbm: Memory that a program may use, bytes.
      hbm_bandwidth: Bytes/s.
      link_bandwidth: Bytes/s that one link to a neighbour carries in one direction.
      network_bandwidth: Bytes/s between slices (or hosts of GPUs), its share of the host's network.
      whole_ring: A dimension of the torus with a multiple of this many chips has joined ends; None: no torus.
    """

    kind: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    whole_ring: int | None


CHIPS = {
    # 4 links a chip, 400 GB/s both ways; 6.4 Tbit/s of network for the 256 chips of a pod.
    "v5e": Chip(
        kind="TPU v5 lite",
        flops=197e12,
        hbm=15.75 * GIB,
        hbm_bandwidth=819e9,
        link_bandwidth=50e9,
        network_bandwidth=3.125e9,
        whole_ring=16,
    ),
    # 6 links a chip, 1200 GB/s both ways; 50 Gbit/s of network.
    "v5p": Chip(
        kind="TPU v5",
        flops=459e12,
        hbm=95.74 * GIB,
        hbm_bandwidth=2765e9,
        link_bandwidth=100e9,
        network_bandwidth=6.25e9,
        whole_ring=4,
    ),
    # 4 links a chip, 800 GB/s both ways; 100 Gbit/s of network.
    "v6e": Chip(
        kind="TPU v6 lite",
        flops=918e12,
        hbm=31.25 * GIB,
        hbm_bandwidth=1638e9,
        link_bandwidth=100e9,
        network_bandwidth=12.5e9,
        whole_ring=16,
    ),
    # 6 links a chip, 300 GB/s one way.
    "v4": Chip(
        kind="TPU v4",
        flops=275e12,
        hbm=30.75 * GIB,
        hbm_bandwidth=1228e9,
        link_bandwidth=50e9,
        network_bandwidth=3.125e9,
        whole_ring=4,
    ),
    # NVLink 900 GB/s both ways; 400 Gbit/s of network.
    "h100": Chip(
        kind="NVIDIA H100",
        flops=989e12,
        hbm=80e9,
        hbm_bandwidth=3350e9,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
        whole_ring=None,
    ),
    "h200": Chip(
        kind="NVIDIA H200",
        flops=989e12,
        hbm=141e9,
        hbm_bandwidth=4800e9,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
        whole_ring=None,
    ),
}
# Other names of the same chips.
_ALIASES = {"TPU v5e": "v5e", "TPU v5p": "v5p", "TPU v6e": "v6e"}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a `device_kind` of jax, such as "TPU v5 lite" or "NVIDIA H200"; None if it is not known."""
    known = {chip.kind: chip for chip in CHIPS.values()} | {name: CHIPS[chip] for name, chip in _ALIASES.items()}
    matches = [name for name in known if device_kind == name or device_kind.startswith(f"{name} ")]
    return known[max(matches, key=len)] if matches else None


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak of one device in dense bfloat16 FLOP/s; None where it is not known, as for a CPU."""
    chip = chip_of(device_kind)
    return None if chip is None else chip.flops
