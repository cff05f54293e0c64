# Shared by the scripts of launch/; sourced, never run.  Slurm runs a copy of a script, so paths start where you queued.
# shellcheck shell=bash

cd "${SLURM_SUBMIT_DIR:-$PWD}" || exit 1

say() { echo "[$(date '+%F %T')] $*"; }

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 2
}

[[ -f launch/cluster.env ]] || fail "no launch/cluster.env in $PWD" "  to do:    queue the job from the folder of this project"
# shellcheck source=launch/cluster.env
source launch/cluster.env

# Runs a command in its container, if there is one; prints it instead where DRY_RUN is set.
run_step() {
    local step=(srun "${SRUN_OPTIONS[@]}")
    if [[ -n "$MOE_GRPO_CONTAINER" ]]; then
        step+=(--container-image="$MOE_GRPO_CONTAINER" --container-mounts="$MOE_GRPO_CONTAINER_MOUNTS" --container-workdir="$PWD")
    fi
    if [[ -n "${DRY_RUN:-}" ]]; then
        printf '%q ' "${step[@]}" "$@"
        echo
    else
        "${step[@]}" "$@"
    fi
}

# Takes --dry-run from the front of the arguments: the caller goes on with "${ARGUMENTS[@]}".
take_dry_run() {
    DRY_RUN=
    if [[ "${1:-}" == --dry-run ]]; then
        DRY_RUN=1
        shift
    fi
    # shellcheck disable=SC2034  # for the caller
    ARGUMENTS=("$@")
}
