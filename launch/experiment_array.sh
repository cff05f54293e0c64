#!/usr/bin/env bash
# The cells of a table, a seed an array element:
#
#   sbatch --array=0-2 launch/experiment_array.sh examples/tables/m4.yaml
#   python -m megatron_moe_grpo experiment examples/tables/m4.yaml      afterwards: writes the page, trains nothing twice
#SBATCH --job-name=moe_grpo_table
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --output=moe_grpo_table-%A_%a.out
set -euo pipefail
source "${SLURM_SUBMIT_DIR:-$PWD}/launch/job.sh"

take_dry_run "$@"
seed=${SLURM_ARRAY_TASK_ID:-0}
SRUN_OPTIONS=(--ntasks=1)
# The page of one seed is nobody's result.
run_step "$MOE_GRPO_PYTHON" -m megatron_moe_grpo experiment "${ARGUMENTS[@]}" --seeds "$seed" \
    --results "$MOE_GRPO_LOGS/${SLURM_ARRAY_JOB_ID:-none}/seed_$seed"
