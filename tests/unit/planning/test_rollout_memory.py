"""Bytes of the key-value cache and the routing trace against those of real rollouts."""

from pathlib import Path
from typing import Any

import pytest
from megatron.core.inference.contexts import StaticInferenceContext
from small_run import write_small_run

from megatron_moe_grpo.mcore import decoding
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.planning.rollout_memory import cache_bytes, decoded_together, trace_bytes

CASES: list[dict[str, Any]] = [
    {},
    {"precision": "bf16", "rollout": {"prompts_per_forward": 1, "max_new_tokens": 9}},
    {"family": "qwen2_vl", "experts": False},
]


@pytest.mark.parametrize("case", CASES, ids=["experts", "bf16_one_prompt", "dense_qwen2_vl"])
def test_cache_and_trace_are_those_of_real_rollouts(
    case: dict[str, Any], one_process: ParallelLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[StaticInferenceContext] = []

    class KeptContext(StaticInferenceContext):
        """Remembers itself, so that its tensors can be counted."""

        def __init__(self, *sizes: int) -> None:
            super().__init__(*sizes)
            caches.append(self)

    monkeypatch.setattr(decoding, "StaticInferenceContext", KeptContext)
    run = write_small_run(tmp_path, **case)
    rollouts = run.roll_out(run.build(one_process).module, one_process)
    planned, layout = run.planned, Layout(run.config.parallel, 1)
    sizes, workload = planned.architecture.text, planned.workload
    real = [sum(t.nbytes for pair in cache.key_value_memory_dict.values() for t in pair) for cache in caches]
    assert set(real) == {cache_bytes(sizes, workload, layout, planned.width)}
    assert len(real) * decoded_together(workload, layout) == len(rollouts.stream_B)
    trace = rollouts.responses.trace
    held = 0 if trace is None else trace.experts_BSLK.nbytes + trace.logprob_BSL.nbytes
    assert held == trace_bytes(sizes, workload, layout)
