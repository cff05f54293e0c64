#!/usr/bin/env bash
# Converts a checkpoint on one node: sbatch launch/convert.sh import HF_FOLDER OUT, or export CHECKPOINT OUT
#SBATCH --job-name=moe_grpo_convert
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --output=moe_grpo_convert-%j.out
set -euo pipefail
source "${SLURM_SUBMIT_DIR:-$PWD}/launch/job.sh"

take_dry_run "$@"
SRUN_OPTIONS=(--ntasks=1)
run_step "$MOE_GRPO_PYTHON" tools/convert_checkpoint.py "${ARGUMENTS[@]}"
