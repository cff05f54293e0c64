"""What GPUs can do, from their makers' public data sheets, and how ranks lie on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from megatron_moe_grpo.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """One GPU at its data sheet's best; `Assumptions` says how much of that a run gets."""

    memory_bytes: float
    """As advertised, in units of 10^9: a little less than the driver shows, so on the safe side."""
    dense_bf16_flops: float
    """Peak, without sparsity, a second."""
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """To the other GPUs of its node, one direction (data sheets give the sum of both)."""
    network_bytes_per_s: float
    """Its share of the node's network cards, one direction."""


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        # NVIDIA A100 80GB SXM data sheet (nvidia.com/en-us/data-center/a100): 312 TFLOPS bf16, 2,039 GB/s, NVLink
        # 600 GB/s.  DGX A100 data sheet: 8 x 200 Gb/s InfiniBand.
        "a100-80g": Gpu(80e9, 312e12, 2039e9, 300e9, 25e9),
        # NVIDIA H100 SXM data sheet (nvidia.com/en-us/data-center/h100): 1,979 TFLOPS bf16 with sparsity, 3.35 TB/s,
        # NVLink 900 GB/s.  DGX H100 data sheet: 8 x 400 Gb/s.
        "h100-80g": Gpu(80e9, 989e12, 3350e9, 450e9, 50e9),
        # NVIDIA H200 SXM data sheet (nvidia.com/en-us/data-center/h200): as H100, but 141 GB and 4.8 TB/s.
        "h200-141g": Gpu(141e9, 989e12, 4800e9, 450e9, 50e9),
        # DGX B200 data sheet (nvidia.com/en-us/data-center/dgx-b200): 1,440 GB and 64 TB/s for 8 GPUs, NVLink 14.4 TB/s
        # together, 8 x 400 Gb/s.  HGX page (nvidia.com/en-us/data-center/hgx): 36 PFLOPS bf16 with sparsity for 8.
        "b200": Gpu(180e9, 2250e12, 8000e9, 900e9, 50e9),
    }
)


@dataclass(frozen=True)
class Machine:
    """Nodes of equal GPUs; ranks fill one node after another."""

    gpu: Gpu
    gpus_per_node: int = 8

    def neighbours(self, size: int, stride: int) -> int:
        """Members of a group of that many ranks, `stride` apart, that share a node."""
        return min(size, max(1, self.gpus_per_node // stride))

    def ring_bytes_per_s(self, size: int, stride: int) -> float:
        """What a ring over such a group carries: NVLink inside a node, the members' network cards between nodes."""
        together = self.neighbours(size, stride)
        if together == size:
            return self.gpu.link_bytes_per_s
        return min(self.gpu.link_bytes_per_s, together * self.gpu.network_bytes_per_s)


def find_gpu(name: str) -> Gpu:
    """A GPU of the table.  Raises ConfigError: no such name; the message lists them."""
    if name not in GPUS:
        raise ConfigError("This GPU is not in the table.", got=f"--gpu {name}", expected=f"one of {', '.join(GPUS)}")
    return GPUS[name]
