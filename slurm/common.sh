# shellcheck shell=bash
# Sourced by the batch scripts in this folder. Variables that may be set at submission:
#   UMBRA_HOME   the repository (default: the folder that the job is submitted from)
#   UMBRA_VENV   the Python environment (default: $UMBRA_HOME/.venv)

fail() {
    echo "error: $*" >&2
    exit 2
}

# Puts the environment's programs first on the PATH.
use_environment() {
    UMBRA_VENV=${UMBRA_VENV:-$UMBRA_HOME/.venv}
    [[ -x $UMBRA_VENV/bin/python ]] || fail "$UMBRA_VENV/bin/python does not exist: run 'make setup', or set UMBRA_VENV"
    export PATH="$UMBRA_VENV/bin:$PATH" PYTHONPATH="$UMBRA_HOME${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
}

# word KEY ARGUMENTS...: the value of the last KEY=VALUE among the arguments, or an empty string.
word() {
    local key=$1 value="" argument
    shift
    for argument in "$@"; do
        [[ $argument == "$key="* ]] && value=${argument#*=}
    done
    printf '%s' "$value"
}

# newest_step RUN: the step of the newest committed checkpoint, or -1.
newest_step() {
    local newest=-1 marker step
    for marker in "$1"/checkpoints/step-*/COMMITTED; do
        step=${marker%/COMMITTED}
        step=${step##*/step-}
        [[ -e $marker && $step =~ ^[0-9]+$ ]] && ((10#$step > newest)) && newest=$((10#$step))
    done
    echo "$newest"
}

# status_of RUN: the status in its run.json, or "none".
status_of() {
    python - "$1/run.json" <<'PYTHON'
import json, sys
try:
    with open(sys.argv[1]) as file:
        print(json.load(file).get("status", "none"))
except (OSError, ValueError):
    print("none")
PYTHON
}

# hang_of RUN: the line that says which processes hung in the last start; empty if none did.
hang_of() {
    if [[ -s $1/hang.txt ]]; then
        head -n 1 "$1/hang.txt"
    fi
}

# this_job: the name by which scontrol knows this job; of an array, this task alone.
this_job() {
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
        echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    else
        echo "$SLURM_JOB_ID"
    fi
}

# once_more CODE: queues a job that failed again, if that was not done UMBRA_RETRIES times (default 1) already.
once_more() {
    ((${SLURM_RESTART_COUNT:-0} < ${UMBRA_RETRIES:-1})) || exit "$1"
    echo "job $(this_job): exit code $1; it is queued once more"
    scontrol requeue "$(this_job)" || exit "$1"
}

# hosts_of_job: the nodes of this job, as NODE,NODE,...
hosts_of_job() {
    scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -s -d,
}

# first_host: the address that rank 0 listens on.
first_host() {
    if [[ -n ${UMBRA_MASTER_ADDR:-} ]]; then
        echo "$UMBRA_MASTER_ADDR"
    elif ((SLURM_JOB_NUM_NODES == 1)); then
        echo 127.0.0.1
    else
        local hosts
        hosts=$(hosts_of_job)
        echo "${hosts%%,*}"
    fi
}
