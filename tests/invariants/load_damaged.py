"""Loads checkpoints that should be refused, on every rank under expert parallelism, and notes what happened.

load_damaged.py WHOLE OUT CHECKPOINT ...
"""

import json
import sys
from pathlib import Path

import torch
from tiny_policy import build_shard

from megatron_moe_grpo.config.schema import ParallelConfig
from megatron_moe_grpo.errors import CheckpointError
from megatron_moe_grpo.mcore.checkpoint import load_checkpoint
from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel


def main() -> None:
    """Writes OUT/rank_R.json: for each checkpoint the error, and whether the model is as before."""
    whole, out, *folders = map(Path, sys.argv[1:])
    parallel = ParallelConfig(expert=2)
    layout = start_parallel(parallel, seed=0)
    model = build_shard(whole / "assets", parallel, layout)
    results = {}
    for folder in folders:
        before = [parameter.detach().clone() for parameter in model.parameters()]
        error = None
        try:
            load_checkpoint(folder, model)
        except CheckpointError as caught:
            error = str(caught)
        is_untouched = all(map(torch.equal, before, model.parameters()))
        results[folder.name] = {"error": error, "is_model_untouched": is_untouched}
    (out / f"rank_{layout.rank}.json").write_text(json.dumps(results), encoding="utf-8")
    stop_parallel()


if __name__ == "__main__":
    main()
