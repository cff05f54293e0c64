"""The planner's groups and legality against Megatron's own process groups and training's own checks."""

import pytest
import torch.distributed as dist
from megatron.core import parallel_state
from small_run import SETTINGS

from megatron_moe_grpo.benchmark.real_configs import internvl_3_5_1b_upcycled, qwen2_vl_2b
from megatron_moe_grpo.config.schema import ParallelConfig, RunConfig
from megatron_moe_grpo.mcore.imagined_ranks import imagined_rank
from megatron_moe_grpo.models.registry import family_of
from megatron_moe_grpo.planning.layout import Layout, candidate_layouts, why_illegal

LAYOUTS = [
    ParallelConfig(tensor=2, pipeline=4, expert=8, expert_tensor=1),
    ParallelConfig(tensor=4, pipeline=2, expert=2),
    ParallelConfig(expert=8),
]
# Planner's name -> Megatron's group.
GROUPS = {
    "tensor": parallel_state.get_tensor_model_parallel_group,
    "data": parallel_state.get_data_parallel_group,
    "pipeline": parallel_state.get_pipeline_model_parallel_group,
    "expert": parallel_state.get_expert_model_parallel_group,
    "expert-tensor": parallel_state.get_expert_tensor_parallel_group,
    "expert-tensor x expert": parallel_state.get_expert_tensor_and_model_parallel_group,
    "expert-data": parallel_state.get_expert_data_parallel_group,
}


@pytest.mark.parametrize("parallel", LAYOUTS)
def test_groups_are_megatrons(parallel: ParallelConfig) -> None:
    layout = Layout(parallel, 64)
    with imagined_rank(parallel, 0, 64):
        for name, get_group in GROUPS.items():
            ranks = dist.get_process_group_ranks(get_group())
            group = layout.groups[name]
            assert ranks == [place * group.stride for place in range(group.size)], name


def recipe(prompts_per_step: int) -> RunConfig:
    training = {"steps": 1, "prompts_per_step": prompts_per_step, "micro_batch_prompts": 1}
    return RunConfig.model_validate(SETTINGS | {"training": training})


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        (ParallelConfig(expert=3), "experts cannot be divided"),
        (ParallelConfig(tensor=16), "key-value heads"),
        (ParallelConfig(pipeline=8), "layers cannot be divided"),
        (ParallelConfig(tensor=8, pipeline=28), "number of processes does not fit"),
        (ParallelConfig(), "do not divide over the ranks"),
        (ParallelConfig(tensor=2, expert_tensor=1), "without expert parallelism, experts must be as tensor-parallel"),
    ],
)
def test_why_illegal_gives_the_reason_of_training(parallel: ParallelConfig, words: str) -> None:
    sizes = family_of(internvl_3_5_1b_upcycled()).parse_architecture(internvl_3_5_1b_upcycled()).text
    prompts = 4 if parallel == ParallelConfig() else 64
    error = why_illegal(recipe(prompts), sizes, Layout(parallel, 64))
    assert error is not None
    assert words in error.what


def test_a_layout_that_only_a_cpu_cannot_run_is_legal() -> None:
    """Gloo cannot gather experts' tokens of different numbers; the plan is for GPUs."""
    sizes = family_of(internvl_3_5_1b_upcycled()).parse_architecture(internvl_3_5_1b_upcycled()).text
    parallel = ParallelConfig(tensor=2, expert=2, expert_tensor=2)
    assert why_illegal(recipe(64), sizes, Layout(parallel, 64)) is None


def test_candidates_cover_every_product_once() -> None:
    sizes = family_of(internvl_3_5_1b_upcycled()).parse_architecture(internvl_3_5_1b_upcycled()).text
    layouts = list(candidate_layouts(recipe(8), sizes, 8))
    cuts = {(layout.tensor, layout.pipeline, layout.expert, layout.expert_tensor) for layout in layouts}
    # 4 divisors of 8 an axis; experts whole or as tensor-parallel as the rest, which is one way for tensor 1.
    assert len(cuts) == len(layouts) == 16 * (1 + 3 * 2)
    dense = family_of(qwen2_vl_2b()).parse_architecture(qwen2_vl_2b()).text
    assert {layout.expert for layout in candidate_layouts(recipe(8), dense, 8)} == {1}
