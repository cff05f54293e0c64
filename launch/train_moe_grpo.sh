#!/usr/bin/env bash
# Trains a recipe on any number of nodes, and queues itself again until the last step is done:
#
#   sbatch --nodes 4 --gpus-per-node 8 --time 24:00:00 launch/train_moe_grpo.sh CONFIG [--set KEY=VALUE ...]
#   launch/train_moe_grpo.sh --dry-run CONFIG ...     prints what it would run, with or without Slurm
#
# What a site has to change stands in launch/cluster.env, what goes on here in docs/slurm.md.
#SBATCH --job-name=moe_grpo
#SBATCH --ntasks-per-node=1
#SBATCH --output=moe_grpo-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
set -uo pipefail
source "${SLURM_SUBMIT_DIR:-$PWD}/launch/job.sh"

take_dry_run "$@"
[[ ${#ARGUMENTS[@]} -gt 0 ]] || fail "no recipe" "  expected: launch/train_moe_grpo.sh [--dry-run] CONFIG [--set KEY=VALUE ...]"

restarts=${SLURM_RESTART_COUNT:-0}
logs="$MOE_GRPO_LOGS/${SLURM_JOB_ID:-none}"
status_file="$logs/status.json"
MOE_GRPO_HEAD=localhost
if [[ -n "${SLURM_JOB_NODELIST:-}" ]]; then
    MOE_GRPO_HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
fi
MOE_GRPO_PORT=$((20000 + ${SLURM_JOB_ID:-0} % 10000))
MOE_GRPO_RANK_LOGS="$logs/ranks/$restarts"
export MOE_GRPO_HEAD MOE_GRPO_PORT MOE_GRPO_RANK_LOGS DRY_RUN
# A task that fails takes the others along: they would wait for it.
SRUN_OPTIONS=(--kill-on-bad-exit=1 --ntasks-per-node=1)
command=(bash launch/node.sh train "${ARGUMENTS[@]}" --status-file "$status_file")

if [[ -n "$DRY_RUN" ]]; then
    echo "# on ${SLURM_NNODES:-1} node(s), logs in $logs"
    run_step "${command[@]}"
    echo "# which runs on each of them"
    bash "${command[@]:1}"
    exit
fi

# USR1 comes from Slurm before the time limit, to this shell alone.
is_asked=
# shellcheck disable=SC2329  # called by a trap
pass_on() {
    is_asked=$1
    say "got $1: asking the processes to save and stop"
    scancel --signal=USR1 "$SLURM_JOB_ID.0"
}

# What the ranks that failed said last.
show_failures() {
    local file
    grep -rlE --include=stderr.log '^Traceback|^error:|Error: ' "$MOE_GRPO_RANK_LOGS" 2>/dev/null | head -n 4 | while read -r file; do
        echo "--- last lines of $file"
        tail -n 25 "$file"
    done
}

# How the run ended: "running" was killed, and what never came to its first step has failed.
state() {
    if grep -q '"state": "crashed", "step": null' "$status_file" 2>/dev/null; then
        echo failed
    else
        sed -n 's/.*"state": "\([a-z]*\)".*/\1/p' "$status_file" 2>/dev/null
    fi
}

queue_again() {
    if ((restarts >= MOE_GRPO_MAX_RESTARTS)); then
        say "$1, and $restarts restarts are the most that MOE_GRPO_MAX_RESTARTS allows"
        exit 1
    fi
    say "$1: queueing this job again, restart $((restarts + 1))"
    scontrol requeue "$SLURM_JOB_ID" || exit 1
    exit 0
}

# After an end that another start may not meet; one that comes back before every new checkpoint ends the job.
try_again() {
    local file="$logs/fruitless" count=0
    if ! grep -q '"has_saved": true' "$status_file"; then
        [[ ! -f "$file" ]] || count=$(<"$file")
        if ((count >= MOE_GRPO_MAX_FRUITLESS)); then
            say "$1, and $((count + 1)) starts in a row have saved nothing; all logs: $MOE_GRPO_RANK_LOGS"
            exit 1
        fi
        count=$((count + 1))
    fi
    echo "$count" > "$file"
    queue_again "$1"
}

mkdir -p "$MOE_GRPO_RANK_LOGS" || exit 1
rm -f "$status_file"
trap 'pass_on USR1' USR1
# TERM: the job was cancelled or preempted.  The processes got it too, and Slurm decides what becomes of the job.
trap 'is_asked=TERM' TERM
say "job $SLURM_JOB_ID on ${SLURM_NNODES:-1} node(s), restart $restarts, logs in $logs"
run_step "${command[@]}" &
srun_pid=$!
code=0
# A signal ends a `wait`; the step goes on.
while kill -0 "$srun_pid" 2>/dev/null; do
    wait "$srun_pid"
    code=$?
done

case "$(state)" in
finished)
    say "finished"
    exit 0
    ;;
stopped)
    if [[ "$is_asked" == TERM ]]; then
        say "saved and stopped; cancelled or preempted, so not queued again from here"
        exit 0
    fi
    queue_again "saved and stopped"
    ;;
hung)
    show_failures
    try_again "a hang was ended, stacks in the run folder"
    ;;
running | crashed)
    if [[ "$is_asked" == TERM ]]; then
        say "cancelled or preempted, and killed before it could save; not queued again from here"
        exit 1
    fi
    show_failures
    if [[ "$is_asked" == USR1 ]]; then
        try_again "killed before it could save"
    fi
    try_again "a process was lost or crashed, srun ended with $code"
    ;;
*)
    if [[ "$is_asked" == USR1 ]]; then
        queue_again "asked to stop before it had begun"
    fi
    show_failures
    say "failed, srun ended with $code; all logs: $MOE_GRPO_RANK_LOGS"
    exit $((code == 0 ? 1 : code))
    ;;
esac
