"""Planned operations against torch's own counter on real forwards."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import write_small_run
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.planning.communication import update_forward
from megatron_moe_grpo.planning.flops import forward_flops
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.training.reference import ReferencePolicy
from megatron_moe_grpo.training.update_batch import UpdateSettings


def attention_flops(query: tuple, key: tuple, value: tuple, *_: object, **__: object) -> int:
    """torch's own count, for the kernel of CPUs, which it does not know; each key head serves several query heads."""
    heads = query[1]
    return sdpa_flop_count(query, (key[0], heads, *key[2:]), (value[0], heads, *value[2:]))


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
CASES: dict[str, dict[str, Any]] = {
    "experts": {},
    "dense_qwen2_vl": {"family": "qwen2_vl", "experts": False},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_forward_flops_are_those_that_torch_counts(
    case: dict[str, Any], one_process: ParallelLayout, tmp_path: Path
) -> None:
    run = write_small_run(tmp_path, **case)
    trained = run.build(one_process)
    rollouts = run.roll_out(trained.module, one_process)
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with counter, torch.no_grad():
        ReferencePolicy(trained.module, one_process, 0).token_logprob_BT(rollouts, UpdateSettings.of(run.config))
    layout = Layout(run.config.parallel, 1)
    planned = forward_flops(run.planned, layout, 0, update_forward(run.planned, layout))
    assert planned.total == pytest.approx(counter.get_total_flops(), rel=1e-3)
