"""Every benchmark by its name."""

import difflib

from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.evaluation.benchmarks.ai2d import AI2D
from megatron_moe_grpo.evaluation.benchmarks.benchmark import Benchmark
from megatron_moe_grpo.evaluation.benchmarks.geo_qa import GeoQA
from megatron_moe_grpo.evaluation.benchmarks.long_video_bench import LongVideoBench
from megatron_moe_grpo.evaluation.benchmarks.mlvu import MLVU
from megatron_moe_grpo.evaluation.benchmarks.mmbench import MMBench
from megatron_moe_grpo.evaluation.benchmarks.mme import MME
from megatron_moe_grpo.evaluation.benchmarks.mmstar import MMStar
from megatron_moe_grpo.evaluation.benchmarks.mmt_bench import MMTBench
from megatron_moe_grpo.evaluation.benchmarks.mvbench import MVBench
from megatron_moe_grpo.evaluation.benchmarks.own_rows import OwnRows
from megatron_moe_grpo.evaluation.benchmarks.super_clevr import SuperCLEVR
from megatron_moe_grpo.evaluation.benchmarks.video_mme import VideoMME

ALL: tuple[Benchmark, ...] = (
    MME(),
    MMBench(),
    MMStar(),
    MMTBench(),
    AI2D(),
    VideoMME(),
    MLVU(),
    LongVideoBench(),
    MVBench(),
    SuperCLEVR(),
    GeoQA(),
    # A letter and the end of turn; a number with its reasoning, as the demo teaches it.
    OwnRows("digit_grids", max_new_tokens=2),
    OwnRows("counting", max_new_tokens=16),
    OwnRows("geometry", max_new_tokens=16),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in ALL}


def benchmark_named(name: str) -> Benchmark:
    """The benchmark of that name.  Raises ConfigError: there is none; names the nearest."""
    if name not in BENCHMARKS:
        nearest = difflib.get_close_matches(name, BENCHMARKS, n=1)
        raise ConfigError(
            "no benchmark of that name",
            got=name,
            expected=", ".join(BENCHMARKS),
            remedy=f"did you mean {nearest[0]}?" if nearest else None,
        )
    return BENCHMARKS[name]
