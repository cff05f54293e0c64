"""Loads checkpoints under layouts of two ranks, and saves each again, with the state of an optimizer after one step.

save_under.py CHECKPOINT OUT TENSOR PIPELINE EXPERT EXPERT_TENSOR [CHECKPOINT OUT ...]
"""

import sys
from pathlib import Path

import torch
from megatron.core import parallel_state
from tiny_policy import trainable

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.mcore.checkpoint import load_checkpoint, save_checkpoint
from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel
from megatron_moe_grpo.models.build import build_model
from megatron_moe_grpo.models.hf_folder import read_hf_config


def save_under(checkpoint: Path, out: Path, parallel: ParallelConfig) -> None:
    """Weights in bf16; the optimizer's own fp32 copies of them have gone elsewhere, so that the two are told apart."""
    layout = start_parallel(parallel, seed=0)
    config = read_hf_config(checkpoint / "assets")
    model = build_model(config, parallel, "bf16", layout.is_first_stage, layout.is_last_stage)
    load_checkpoint(checkpoint, model)
    training = trainable(model)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.main_grad.fill_(1.0)
    training.optimizer.step()
    with torch.no_grad():
        for parameter, before in zip(model.parameters(), weights, strict=True):
            parameter.copy_(before)
    save_checkpoint(out, model, checkpoint / "assets", {"step": 0}, training)
    parallel_state.destroy_model_parallel()


def main() -> None:
    """One OUT after the other."""
    arguments = sys.argv[1:]
    while arguments:
        checkpoint, out, *sizes = arguments[:6]
        arguments = arguments[6:]
        axes = dict(zip(("tensor", "pipeline", "expert", "expert_tensor"), map(int, sizes), strict=True))
        save_under(Path(checkpoint), Path(out), ParallelConfig(**axes))
    stop_parallel()


if __name__ == "__main__":
    main()
