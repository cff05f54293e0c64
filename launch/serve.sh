#!/usr/bin/env bash
# Serves a checkpoint on one node until the job ends: sbatch launch/serve.sh FOLDER --port 8000 [...]
# It listens on that node only; to ask it from here: ssh -L 8000:127.0.0.1:8000 NODE (docs/serving.md).
#SBATCH --job-name=moe_grpo_serve
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --output=moe_grpo_serve-%j.out
set -euo pipefail
source "${SLURM_SUBMIT_DIR:-$PWD}/launch/job.sh"

take_dry_run "$@"
SRUN_OPTIONS=(--ntasks=1)
[[ -n "$DRY_RUN" ]] || say "on node $(hostname)"
run_step "$MOE_GRPO_PYTHON" -m megatron_moe_grpo serve "${ARGUMENTS[@]}"
