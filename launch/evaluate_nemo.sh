#!/usr/bin/env bash
# Serves a checkpoint and lets nemo-evaluator run our benchmarks against it, on one node:
#
#   sbatch launch/evaluate_nemo.sh CHECKPOINT OUT TASK=DATA [TASK=DATA ...] [-- KEY=VALUE ...]
#   launch/evaluate_nemo.sh --dry-run CHECKPOINT OUT ...     prints what it would run, with or without Slurm
#
# OUT is a new folder: OUT/TASK/results.yml, and OUT/server.log.  KEY=VALUE are nemo-evaluator's overrides, such as
# config.params.parallelism=32.  The exit code is 0 only if every task has its results.  More in docs/nemo.md.
#SBATCH --job-name=moe_grpo_nemo
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --output=moe_grpo_nemo-%j.out
set -uo pipefail
source "${SLURM_SUBMIT_DIR:-$PWD}/launch/job.sh"

# Where tools/nemo_harness/make_venv.py nemo-evaluator puts it.
: "${MOE_GRPO_NEMO_EVALUATOR:=${XDG_CACHE_HOME:-$HOME/.cache}/megatron-moe-grpo/harnesses/nemo-evaluator/bin/nemo-evaluator}"
# Loading a large checkpoint takes its time.
: "${MOE_GRPO_SERVER_START_S:=1800}"
: "${MOE_GRPO_SERVER_STOP_S:=30}"

take_dry_run "$@"
usage="  expected: launch/evaluate_nemo.sh [--dry-run] CHECKPOINT OUT TASK=DATA [TASK=DATA ...] [-- KEY=VALUE ...]"
[[ ${#ARGUMENTS[@]} -ge 3 ]] || fail "too few arguments" "$usage"
checkpoint=${ARGUMENTS[0]} out=${ARGUMENTS[1]}
tasks=() overrides="" is_override=""
for argument in "${ARGUMENTS[@]:2}"; do
    if [[ "$argument" == -- && -z "$is_override" ]]; then
        is_override=1
    elif [[ "$argument" != *=* || "$argument" == *,* ]]; then
        fail "neither TASK=DATA nor KEY=VALUE" "  got:      $argument" "$usage, without commas"
    elif [[ -n "$is_override" ]]; then
        overrides+=",$argument"
    else
        tasks+=("$argument")
    fi
done
[[ ${#tasks[@]} -gt 0 ]] || fail "no task" "$usage"

port=$((20000 + ${SLURM_JOB_ID:-$$} % 10000))
# Caches of every harness ask for the model's name only: no two servers may share one.
model="$(basename "$checkpoint")-$(date +%Y%m%d%H%M%S)-${SLURM_JOB_ID:-$$}"
# The two steps share the node, its processors and its GPUs.
SRUN_OPTIONS=(--nodes=1 --ntasks=1 --overlap)
# Others on the node can reach a port of it too.
key_file="$out/api_key"
MOE_GRPO_API_KEY=$(head -c 32 /dev/urandom | base64 | tr -dc '[:alnum:]')
server=("$MOE_GRPO_PYTHON" -m megatron_moe_grpo serve "$checkpoint" --port "$port" --model-name "$model" --api-key-file "$key_file")

# nemo-evaluator sends the model's name to its makers unless told otherwise.
export NEMO_EVALUATOR_TELEMETRY_LEVEL=0 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 MOE_GRPO_PYTHON MOE_GRPO_API_KEY
export PYTHONPATH="$PWD:$PWD/tools/nemo_harness${PYTHONPATH:+:$PYTHONPATH}"

evaluate() {
    local task=${1%%=*} data=${1#*=}
    run_step "$MOE_GRPO_NEMO_EVALUATOR" run_eval --eval_type "moe_grpo.$task" --model_id "$model" --model_type chat \
        --model_url "http://127.0.0.1:$port/v1/chat/completions" --output_dir "$out/$task" \
        --api_key_name MOE_GRPO_API_KEY \
        --overrides "config.params.extra.data=$data$overrides"
}

if [[ -n "$DRY_RUN" ]]; then
    echo "# the server, until the tasks are done"
    run_step "${server[@]}"
    echo "# once it answers on /health, one after the other"
    for task in "${tasks[@]}"; do evaluate "$task"; done
    exit
fi

[[ -z "$(ls -A "$out" 2>/dev/null)" ]] || fail "the output folder holds an earlier evaluation" "  got:      $out" "  to do:    name a new folder"
mkdir -p "$out" || exit 1
(umask 077 && echo "$MOE_GRPO_API_KEY" > "$key_file") || exit 1

# A server that another job left on the port would answer too; only ours writes to this log.
is_serving() {
    grep -qF "serving $model on " "$out/server.log" && curl --silent --fail --max-time 5 --output /dev/null "http://127.0.0.1:$port/health"
}

# Starts a command in the background, in a process group of its own: srun is a child of the shell that `&` makes, and
# both have to go.  Sets $started.
start() {
    set -m
    "$@" &
    started=$!
    set +m
}

is_running() { kill -0 "$server_pid" 2>/dev/null; }

stop() {
    local deadline=$((SECONDS + MOE_GRPO_SERVER_STOP_S))
    kill -TERM -- "-$1" 2>/dev/null
    while kill -0 -- "-$1" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.2; done
    kill -KILL -- "-$1" 2>/dev/null
    wait "$1" 2>/dev/null
}

# shellcheck disable=SC2329  # called by a trap
stop_all() {
    rm -f "$key_file"
    [[ -z "$task_pid" ]] || stop "$task_pid"
    stop "$server_pid"
}

give_up() {
    say "$1; the last lines of $out/server.log:"
    tail -n 25 "$out/server.log"
    exit 1
}

say "serving $checkpoint as $model"
task_pid=""
start run_step "${server[@]}" > "$out/server.log" 2>&1
server_pid=$started
trap stop_all EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
while ! is_serving; do
    is_running || give_up "the server ended before it served"
    ((SECONDS < MOE_GRPO_SERVER_START_S)) || give_up "the server did not serve within $MOE_GRPO_SERVER_START_S s"
    sleep 0.5
done

failed=()
for task in "${tasks[@]}"; do
    say "evaluating $task"
    # In the background, because a trap waits for what runs in the foreground.
    start evaluate "$task"
    task_pid=$started
    wait "$task_pid"
    code=$?
    task_pid=""
    is_running || give_up "the server ended while $task was evaluated"
    [[ $code -eq 0 && -s "$out/${task%%=*}/results.yml" ]] || failed+=("${task%%=*}")
done
[[ ${#failed[@]} -eq 0 ]] || { say "failed: ${failed[*]}"; exit 1; }
say "finished: $out"
