#!/usr/bin/env bash
# One node's share of a job: torchrun with a process a GPU.  srun starts it on each node; the arguments are a command of
# `python -m megatron_moe_grpo`.  Needs MOE_GRPO_HEAD, MOE_GRPO_PORT and MOE_GRPO_RANK_LOGS.
set -euo pipefail
source launch/cluster.env

processes=${MOE_GRPO_PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}

# Slurm sends the stop signal to every process of a step.  torchrun would die of it, and gives its workers 30 seconds
# after a TERM: too few to save a large model.  Ignored here, it is ignored by torchrun too; the workers answer it.
trap '' USR1

command=(
    "$MOE_GRPO_PYTHON" -m torch.distributed.run
    --nnodes "${SLURM_NNODES:-1}" --nproc-per-node "$processes" --max-restarts 0
    --rdzv-backend c10d --rdzv-id "${SLURM_JOB_ID:-none}-${SLURM_RESTART_COUNT:-0}"
    --rdzv-endpoint "$MOE_GRPO_HEAD:$MOE_GRPO_PORT"
    # One file a rank; what the first process of a node prints is shown as well.
    --log-dir "$MOE_GRPO_RANK_LOGS/${SLURM_NODEID:-0}" --redirects 3 --tee 0:3
    -m megatron_moe_grpo "$@"
)
if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "${command[@]}"
    echo
else
    exec "${command[@]}"
fi
