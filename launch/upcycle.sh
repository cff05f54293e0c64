#!/usr/bin/env bash
# Makes experts of a dense Hugging Face folder on one node: sbatch launch/upcycle.sh HF_FOLDER OUT [...]
#SBATCH --job-name=moe_grpo_upcycle
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --output=moe_grpo_upcycle-%j.out
set -euo pipefail
source "${SLURM_SUBMIT_DIR:-$PWD}/launch/job.sh"

take_dry_run "$@"
SRUN_OPTIONS=(--ntasks=1)
run_step "$MOE_GRPO_PYTHON" tools/upcycle_checkpoint.py "${ARGUMENTS[@]}"
