#!/usr/bin/env bash
# Evaluates a checkpoint on one node: sbatch launch/evaluate.sh CHECKPOINT --data FILE [...]
#SBATCH --job-name=moe_grpo_evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --output=moe_grpo_evaluate-%j.out
set -euo pipefail
source "${SLURM_SUBMIT_DIR:-$PWD}/launch/job.sh"

take_dry_run "$@"
SRUN_OPTIONS=(--ntasks=1)
run_step "$MOE_GRPO_PYTHON" -m megatron_moe_grpo evaluate "${ARGUMENTS[@]}"
