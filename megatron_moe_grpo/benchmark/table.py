"""The measured numbers as one table for a terminal."""

from typing import Any

from megatron_moe_grpo.benchmark.grpo_step import PHASES
from megatron_moe_grpo.benchmark.shapes import GROUP_SIZE, NUM_NEW_TOKENS
from megatron_moe_grpo.training.console import summary_table

ROLLOUT_PHASES = ("prompt preparation", "vision", "prefill", "decode", "rewards and texts")
OVERHEAD_BAR = 0.05


def benchmark_table(numbers: dict[str, Any]) -> str:
    """What `run_benchmark` returned, for people."""
    phases = numbers["phases"]
    rows = [(f"step: {name}", phases[name]["cpu"], phases[name]["wall"], "ms") for name in PHASES]
    rows.append(("step, whole", numbers["step_ms"]["cpu"], numbers["step_ms"]["wall"], "ms"))
    rows += [("rollout", *(_rollout_tokens_per_s(phases, clock) for clock in ("cpu", "wall")), "tokens/s")]
    rows += [("decode", *(_decode_ms_per_token(phases, clock) for clock in ("cpu", "wall")), "ms/token")]
    rows += [("prefill of the group", phases["prefill"]["cpu"], phases["prefill"]["wall"], "ms")]
    rows += [("peak memory", None, numbers["peak_memory_mib"], "MiB")]
    if "trl" in numbers:
        trl = numbers["trl"]
        rows += [
            (f"TRL {trl['version']}, step", trl["step_ms"]["cpu"], trl["step_ms"]["wall"], "ms"),
            ("ours between TRL's, step", trl["our_step_ms"]["cpu"], trl["our_step_ms"]["wall"], "ms"),
            ("TRL, generation", trl["generate_ms"], None, "ms"),
        ]
    return "\n".join([summary_table(rows, ("what", "CPU", "wall", "unit")), "", *_ratio_lines(numbers)])


def _ratio_lines(numbers: dict[str, Any]) -> list[str]:
    """Ratios of CPU time, from runs next to each other."""
    share = numbers["trace_ratio"]["median"] - 1
    verdict = "within" if share <= OVERHEAD_BAR else "ABOVE"
    lines = [
        f"recording and replaying the trace: {_percent(numbers['trace_ratio'])} of the same step without "
        f"({verdict} the bar of {OVERHEAD_BAR:.0%})",
        f"all routing and router losses:     {_percent(numbers['routing_ratio'])} of a step with Megatron's own router",
    ]
    if "trl" not in numbers:
        return [
            *lines,
            "TRL is not installed: ours only (pip install trl==1.16.0 accelerate, in an environment of its own)",
        ]
    ratio, (low, high) = numbers["trl"]["ratio"], numbers["trl"]["ratio_range"]
    return [*lines, f"ours / TRL, CPU time of a step:    {ratio['median']:.2f} (blocks from {low:.2f} to {high:.2f})"]


def _percent(ratio: dict[str, float]) -> str:
    return f"{ratio['median'] - 1:+.1%} [{ratio['low'] - 1:+.1%}, {ratio['high'] - 1:+.1%}]"


def _rollout_tokens_per_s(phases: dict[str, dict[str, float]], clock: str) -> float:
    return GROUP_SIZE * NUM_NEW_TOKENS / sum(phases[name][clock] for name in ROLLOUT_PHASES) * 1e3


def _decode_ms_per_token(phases: dict[str, dict[str, float]], clock: str) -> float:
    """The first token comes from the prefill."""
    return phases["decode"][clock] / (GROUP_SIZE * (NUM_NEW_TOKENS - 1))
