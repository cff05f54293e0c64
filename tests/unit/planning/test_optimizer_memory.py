"""Bytes of weights, gradients and optimizer against those that Megatron's own buffers hold.

One process trains for real.  Larger worlds are imagined: their groups are fake, their buffers really allocated.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from small_run import SmallRun, write_small_run

from megatron_moe_grpo.mcore.imagined_ranks import imagined_rank
from megatron_moe_grpo.mcore.optimizer import freeze_parts
from megatron_moe_grpo.mcore.parallel import ParallelLayout, start_parallel, stop_parallel
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.planning.optimizer_memory import WeightMemory, weight_memory

WORLD = 16
RUNS: dict[str, dict[str, Any]] = {
    "experts": {},
    "frozen": {"model": {"freeze": ("vision_tower", "projector")}},
    "bf16": {"precision": "bf16"},
    "tied": {"family": "qwen2_vl", "experts": False, "precision": "bf16"},
}
CUTS: dict[str, dict[str, int]] = {
    "data": {},
    "pipeline": {"pipeline": 2},
    "tensor": {"tensor": 2},
    "expert": {"expert": 4},
    "all": {"tensor": 2, "pipeline": 2, "expert": 2, "expert_tensor": 1},
}


def planned_memory(run: SmallRun, world_size: int, stage: int) -> WeightMemory:
    layout = Layout(run.config.parallel, world_size)
    return weight_memory(run.planned.weights.of_stage(layout, stage), layout, run.config.precision)


def buffers_of(wrapped: DistributedDataParallel) -> list:
    return [*wrapped.buffers, *wrapped.expert_parallel_buffers]


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS.keys())
def test_weight_memory_is_that_of_a_real_step(settings: dict[str, Any], tmp_path: Path) -> None:
    run = write_small_run(tmp_path, **settings)
    layout = start_parallel(run.config.parallel, seed=0)
    trained = run.build(layout)
    run.accumulate(trained, layout, run.roll_out(trained.module, layout))
    trained.optimizer.step()
    weights = {tensor.untyped_storage().data_ptr(): tensor for tensor in trained.module.parameters()}
    gradients = [buffer.grad_data for buffer in buffers_of(trained.wrapped)]
    state = [
        tensor
        for optimizer in trained.optimizer.chained_optimizers
        for parameter, values in optimizer.optimizer.state.items()
        # Of fp32 weights the "master" is the weight itself; Adam counts steps in a scalar.
        for tensor in (*([parameter] if run.config.precision == "bf16" else []), *values.values())
        if tensor.dim() > 0
    ]
    stop_parallel()
    planned = planned_memory(run, 1, 0)
    assert planned.weights == sum(tensor.untyped_storage().nbytes() for tensor in weights.values())
    assert planned.gradients == sum(tensor.nbytes for tensor in gradients)
    assert planned.optimizer == sum(tensor.nbytes for tensor in state)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS.keys())
def test_weight_memory_is_that_of_every_rank_of_a_larger_world(
    settings: dict[str, Any], cut: dict[str, int], tmp_path: Path
) -> None:
    if not settings.get("experts", True):
        cut = {name: size for name, size in cut.items() if not name.startswith("expert")}
    run = write_small_run(tmp_path, parallel=cut, **settings)
    values_by_stage: dict[int, list[int]] = {}
    for rank in range(WORLD):
        with imagined_rank(run.config.parallel, rank, WORLD) as place:
            planned = planned_memory(run, WORLD, place.pipeline_rank)
            buffers, frozen_bytes, num_values = allocated(run, place)
            assert planned.weights == sum(buffer.param_data.nbytes for buffer in buffers) + frozen_bytes
            assert planned.gradients == sum(buffer.grad_data.nbytes for buffer in buffers)
            values_by_stage.setdefault(place.pipeline_rank, []).append(num_values)
    state_bytes = 8 if run.config.precision == "fp32" else 12
    for stage, counts in values_by_stage.items():
        assert sum(counts) / len(counts) * state_bytes == pytest.approx(planned_memory(run, WORLD, stage).optimizer)


def allocated(run: SmallRun, place: ParallelLayout) -> tuple[list, int, int]:
    """An imagined rank's buffers, the bytes of its frozen weights, and the values that its optimizer holds."""
    parallel, precision = run.config.parallel, run.config.precision
    model = build_model(run.hf_config, parallel, precision, place.is_first_stage, place.is_last_stage)
    freeze_parts(model, run.config.model.freeze)
    settings = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    wrapped = DistributedDataParallel(model.config, settings, model)
    is_bf16 = model.config.bf16
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=1e-3, bf16=is_bf16, params_dtype=model.config.params_dtype,
                        use_distributed_optimizer=True),
        [wrapped],
        use_gloo_process_groups=False,
    )  # fmt: skip
    groups = [group for part in optimizer.chained_optimizers for group in part.optimizer.param_groups]
    num_values = sum(parameter.numel() for group in groups for parameter in group["params"])
    frozen = sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad)
    return buffers_of(wrapped), frozen, num_values


def test_bf16_has_masters_and_fp32_has_none() -> None:
    """By hand: 3 weights over 2 copies, 1.5 each; two moments of 4 bytes, and a master of 4 where weights are bf16."""
    from megatron_moe_grpo.config.schema import ParallelConfig
    from megatron_moe_grpo.planning.model_weights import StageWeight

    weight = StageWeight("a", 3, is_expert=False, is_trained=True, is_shared_embedding=False)
    layout = Layout(ParallelConfig(), 2)
    assert weight_memory([weight], layout, "fp32").optimizer == 1.5 * 8
    assert weight_memory([weight], layout, "bf16").optimizer == 1.5 * 12
    # One bucket, padded to 128 values.
    assert weight_memory([weight], layout, "bf16").weights == 128 * 2
    assert torch.finfo(torch.bfloat16).bits == 16
