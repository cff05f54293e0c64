"""What the largest process of a run holds: its own memory, and its GPU's."""

import resource

import psutil
import torch

from megatron_moe_grpo.mcore.parallel import ParallelLayout


def largest_memory(layout: ParallelLayout) -> dict[str, float]:
    """Bytes of the rank that holds most, number by number: the one that would run out first.  All ranks call it.

    `rss_bytes` and `rss_peak_bytes` (since the process began) are main memory.  On a GPU also `cuda_allocated_bytes`,
    `cuda_reserved_bytes` (what torch keeps from the driver) and `cuda_peak_bytes`: most that was allocated since the
    last call.
    """
    values: dict[str, float] = {
        "rss_bytes": psutil.Process().memory_info().rss,
        # Linux counts in KiB.
        "rss_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if layout.device.type == "cuda":
        values["cuda_allocated_bytes"] = torch.cuda.memory_allocated()
        values["cuda_reserved_bytes"] = torch.cuda.memory_reserved()
        values["cuda_peak_bytes"] = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    largest = layout.maximum(torch.tensor(list(values.values()), dtype=torch.float64, device=layout.device))
    return dict(zip(values, largest.tolist(), strict=True))
