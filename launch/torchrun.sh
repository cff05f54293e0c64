#!/usr/bin/env bash
# One machine, no Slurm: launch/torchrun.sh PROCESSES train CONFIG [...]
set -euo pipefail
source launch/cluster.env
[[ $# -ge 2 ]] || { echo "error: expected launch/torchrun.sh PROCESSES train CONFIG [...]" >&2; exit 2; }
processes=$1
shift
exec "$MOE_GRPO_PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$processes" -m megatron_moe_grpo "$@"
