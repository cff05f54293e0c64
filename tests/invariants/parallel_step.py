"""Runs every layout of two processes, one after the other, under torchrun; the tests read what it leaves behind.

    torchrun --nproc_per_node 2 parallel_step.py CHECKPOINTS PICTURES OUT [CASE ...]

One start of two processes costs more than all the steps together, so all cases share it.
"""

import os
import sys
from pathlib import Path

import torch
from one_step import Objective, StepCase, run_step
from qwen_policy import make_qwen_rows
from tiny_policy import Bench, make_rows

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.checkpoint import save_checkpoint
from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel
from megatron_moe_grpo.models.hf_folder import read_hf_config
from megatron_moe_grpo.models.registry import family_of

ROWS_OF = {"internvl": make_rows, "qwen2_vl": make_qwen_rows}
TIED = Objective(ties_embeddings=True)
GATE_ALL = Objective(gate_tokens="all")
QWEN = Objective(family="qwen2_vl")
# As the released Qwen2-VL-2B is.
QWEN_TIED = Objective(family="qwen2_vl", ties_embeddings=True)
RESPONSE_ONLY = Objective(explores_prompt=False)
SOME_LAYERS = Objective(routed="some_layers", gate_tokens="all")
LAST_STAGE = Objective(routed="last_stage")
DYNAMIC_SAMPLING = Objective(rl_method="dapo", extra_rounds=2)

CASES: dict[str, StepCase] = {
    "data": StepCase(),
    "data_micro_batches_recompute_moe": StepCase(ParallelConfig(recompute="moe"), micro_batch_prompts=1),
    "data_tied": StepCase(objective=TIED),
    "expert": StepCase(ParallelConfig(expert=2)),
    "expert_micro_batches": StepCase(ParallelConfig(expert=2), micro_batch_prompts=1, prompts_per_forward=1),
    "expert_recompute_full": StepCase(ParallelConfig(expert=2, recompute="full"), micro_batch_prompts=1),
    "expert_response_only": StepCase(ParallelConfig(expert=2), objective=RESPONSE_ONLY),
    "pipeline": StepCase(ParallelConfig(pipeline=2)),
    "pipeline_micro_batches": StepCase(ParallelConfig(pipeline=2), micro_batch_prompts=1, objective=GATE_ALL),
    "pipeline_tied": StepCase(ParallelConfig(pipeline=2), micro_batch_prompts=2, objective=TIED),
    "pipeline_recompute_full": StepCase(ParallelConfig(pipeline=2, recompute="full"), micro_batch_prompts=1),
    "pipeline_some_layers": StepCase(ParallelConfig(pipeline=2), micro_batch_prompts=1, objective=SOME_LAYERS),
    "pipeline_last_stage": StepCase(ParallelConfig(pipeline=2), micro_batch_prompts=2, objective=LAST_STAGE),
    "pipeline_last_stage_recompute": StepCase(
        ParallelConfig(pipeline=2, recompute="full"), micro_batch_prompts=1, objective=LAST_STAGE
    ),
    "tensor": StepCase(ParallelConfig(tensor=2)),
    "tensor_micro_batches": StepCase(ParallelConfig(tensor=2), micro_batch_prompts=2, objective=GATE_ALL),
    "tensor_tied": StepCase(ParallelConfig(tensor=2), objective=TIED),
    "tensor_recompute_moe": StepCase(ParallelConfig(tensor=2, recompute="moe")),
    "tensor_recompute_full": StepCase(ParallelConfig(tensor=2, recompute="full"), micro_batch_prompts=1),
    "tensor_and_expert": StepCase(ParallelConfig(tensor=2, expert=2, expert_tensor=1)),
    "tensor_and_expert_some_layers": StepCase(
        ParallelConfig(tensor=2, expert=2, expert_tensor=1, recompute="moe"), objective=SOME_LAYERS
    ),
    "data_dapo_kl": StepCase(micro_batch_prompts=1, objective=Objective(rl_method="dapo", has_kl=True)),
    "data_dr_grpo": StepCase(micro_batch_prompts=1, objective=Objective(rl_method="dr_grpo")),
    "expert_cispo": StepCase(ParallelConfig(expert=2), objective=Objective(rl_method="cispo")),
    "pipeline_sapo": StepCase(ParallelConfig(pipeline=2), micro_batch_prompts=1, objective=Objective(rl_method="sapo")),
    "tensor_gspo": StepCase(ParallelConfig(tensor=2), micro_batch_prompts=2, objective=Objective(rl_method="gspo")),
    "expert_dynamic_sampling": StepCase(ParallelConfig(expert=2), objective=DYNAMIC_SAMPLING),
    "tensor_dynamic_sampling": StepCase(ParallelConfig(tensor=2), objective=DYNAMIC_SAMPLING),
}
QWEN_CASES: dict[str, StepCase] = {
    "qwen_data": StepCase(objective=QWEN),
    "qwen_expert": StepCase(ParallelConfig(expert=2), objective=QWEN),
    "qwen_pipeline": StepCase(ParallelConfig(pipeline=2), micro_batch_prompts=1, objective=QWEN_TIED),
    "qwen_tensor": StepCase(ParallelConfig(tensor=2), micro_batch_prompts=2, objective=QWEN_TIED),
    "qwen_tensor_and_expert": StepCase(
        ParallelConfig(tensor=2, expert=2, expert_tensor=1, recompute="full"), objective=QWEN
    ),
}
ALL_CASES = CASES | QWEN_CASES


def run_case(name: str, checkpoints: Path, pictures: Path, out: Path) -> None:
    """Leaves outcome_RANK.pt and, as if it were weights, the gradient: a checkpoint loads it under any layout."""
    case = ALL_CASES[name]
    checkpoint = checkpoints / case.objective.checkpoint_name
    # A store of its own for each case: process groups of different layouts would meet in one.
    store = f"file://{out.resolve()}/{name}.store"
    torch.distributed.init_process_group(
        "gloo", init_method=store, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
    )
    layout = start_parallel(case.parallel, seed=0)
    assets = checkpoint / "assets"
    processing = family_of(read_hf_config(assets)).processing.from_folder(assets)
    rows = ROWS_OF[case.objective.family](sorted(pictures.iterdir()), processing)
    bench = Bench(layout, checkpoint / "assets", processing, rows)
    outcome, trained, gradient = run_step(bench, case, checkpoint)
    with torch.no_grad():
        for parameter_name, parameter in trained.module.named_parameters():
            parameter.copy_(gradient[parameter_name])
    save_checkpoint(out / name / "gradient", trained.module, checkpoint / "assets", {})
    place = {"data_rank": layout.data_rank, "tensor_rank": layout.tensor_rank, "pipeline_rank": layout.pipeline_rank}
    torch.save({**vars(outcome), **place}, out / name / f"outcome_{layout.rank}.pt")
    stop_parallel()


def main() -> None:
    """The cases that are named, or all of them in order."""
    torch.set_num_threads(1)
    checkpoints, pictures, out = map(Path, sys.argv[1:4])
    for name in sys.argv[4:] or ALL_CASES:
        run_case(name, checkpoints, pictures, out)


if __name__ == "__main__":
    main()
