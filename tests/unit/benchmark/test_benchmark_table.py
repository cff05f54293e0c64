from typing import Any

from megatron_moe_grpo.benchmark.grpo_step import PHASES
from megatron_moe_grpo.benchmark.table import benchmark_table


def numbers(trace_ratio: float) -> dict[str, Any]:
    """Every phase takes 10 ms of CPU and 20 ms of wall time, decoding 60 and 120."""
    phases = {name: {"cpu": 10.0, "wall": 20.0} for name in PHASES} | {"decode": {"cpu": 60.0, "wall": 120.0}}
    ratio = {"median": trace_ratio, "low": 1.0, "high": 1.2}
    return {
        "phases": phases,
        "step_ms": {"cpu": 140.0, "wall": 280.0},
        "trace_ratio": ratio,
        "routing_ratio": ratio,
        "peak_memory_mib": 700.0,
    }


def line_with(table: str, text: str) -> list[str]:
    return next(line for line in table.splitlines() if text in line).split()


def test_table_gives_rates_worked_by_hand() -> None:
    table = benchmark_table(numbers(1.02))
    # 8 x 16 tokens in 4 x 10 + 60 ms; 60 ms for the 8 x 15 tokens after the prefill's.
    assert line_with(table, "rollout")[1:] == ["1280.000", "640.000", "tokens/s"]
    assert line_with(table, "ms/token")[1:] == ["0.500", "1.000", "ms/token"]


def test_table_says_whether_the_bar_is_met() -> None:
    assert "+2.0% [+0.0%, +20.0%] of the same step without (within the bar of 5%)" in benchmark_table(numbers(1.02))
    assert "(ABOVE the bar of 5%)" in benchmark_table(numbers(1.06))


def test_table_says_in_one_line_that_trl_is_missing() -> None:
    lines = [line for line in benchmark_table(numbers(1.0)).splitlines() if "TRL" in line]
    assert len(lines) == 1 and "not installed" in lines[0]


def test_table_puts_trl_beside_ours() -> None:
    clocks = {"cpu": 100.0, "wall": 150.0}
    trl = {
        "version": "1.16.0", "step_ms": clocks, "our_step_ms": clocks, "generate_ms": 50.0,
        "ratio": {"median": 1.4, "low": 1.3, "high": 1.5}, "ratio_range": [1.2, 1.6],
    }  # fmt: skip
    table = benchmark_table(numbers(1.0) | {"trl": trl})
    assert "1.40 (blocks from 1.20 to 1.60)" in table
    assert line_with(table, "TRL 1.16.0, step")[3:] == ["100.000", "150.000", "ms"]
