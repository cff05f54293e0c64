"""The conversion benchmark's numbers as one table for a terminal."""

from typing import Any

from megatron_moe_grpo.benchmark.measure import Spread
from megatron_moe_grpo.training.console import summary_table

SPEED_BAR = 0.5
GB, MIB = 1e9, 2**20
COLUMNS = ("what", "s", "best s", "GB/s", "speed / cp", "speed / cp flushed", "CPU s", "peak MiB", "of it imports MiB")


def conversion_table(numbers: dict[str, Any]) -> str:
    """What `run_conversion_benchmark` returned, for people: medians, quartiles; `best s` shows what other work cost."""
    rows = [_row(numbers, name) for name in ("cp", "cp_flushed", "import", "export")]
    bound, peak = numbers["peak_bound_bytes"], max(numbers[name]["peak_bytes"] for name in ("import", "export"))
    slowest = min(numbers[name]["speed_over_cp_flushed"]["median"] for name in ("import", "export"))
    return "\n".join(
        [
            f"{numbers['model']}: {numbers['bytes']:,} bytes of weights, {numbers['rounds']} round(s), "
            f"{numbers['cores']} cores, load {numbers['load_average_at_end']:.1f}",
            summary_table(rows, COLUMNS),
            "",
            f"speed: {slowest:.2f} of cp's, both until the bytes are on the disk "
            f"({_verdict(slowest >= SPEED_BAR)} the bar of {SPEED_BAR})",
            f"memory: {peak / MIB:,.0f} MiB ({_verdict(peak <= bound)} the bar of 1.5 x the largest shard + 1 GB, "
            f"{bound / MIB:,.0f} MiB)",
        ]
    )


def _row(numbers: dict[str, Any], name: str) -> tuple[object, ...]:
    timed = numbers[name]
    seconds = timed["wall_s"]["median"]
    ratios = [str(Spread(**timed[f"speed_over_{reference}"])) for reference in ("cp", "cp_flushed")]
    times = (seconds, timed["best_s"], numbers["bytes"] / GB / seconds)
    if "cpu_s" not in timed:
        return (name.replace("_", ", "), *times, *ratios, None, None, None)
    memory = [round(timed[key] / MIB) for key in ("peak_bytes", "imports_bytes")]
    return (name, *times, *ratios, timed["cpu_s"]["median"], *memory)


def _verdict(is_met: bool) -> str:
    return "meets" if is_met else "MISSES"
