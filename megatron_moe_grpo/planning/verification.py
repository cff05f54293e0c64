"""The counted parameters against Megatron's own: one rank of each kind of stage is built, without memory."""

import torch

from megatron_moe_grpo.mcore.imagined_ranks import imagined_rank
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.planning.layout import Layout
from megatron_moe_grpo.planning.memory import PlannedRun


def verify_parameters(run: PlannedRun, layout: Layout) -> int:
    """Builds ranks of `layout` on the meta device and compares every parameter's size; returns how many ranks.

    Needs no process groups, and leaves none.
    """
    stages = run.unlike_stages(layout)
    for stage in stages:
        rank = stage * layout.groups["pipeline"].stride
        with imagined_rank(layout.parallel, rank, layout.world_size) as place:
            assert place.pipeline_rank == stage, "Megatron counts pipeline stages otherwise"
            with torch.device("meta"):
                model = build_model(
                    run.hf_config, layout.parallel, run.config.precision, place.is_first_stage, place.is_last_stage
                )
        built = sorted(parameter.numel() for parameter in model.parameters())
        counted = sorted(part.num_values for part in run.weights.of_stage(layout, stage))
        assert built == counted, f"stage {stage} of {layout}: {sum(built)} parameters built, {sum(counted)} counted"
    return len(stages)
