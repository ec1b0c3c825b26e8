#!/bin/bash
# Submits all stages of a project to Slurm, each after the one before has done well:
#
#   slurm/pipeline.sh OUT \
#       shard --array=0-31 --time=4:00:00 configs/shard/ptbxl.yaml input=PTBXL rate=100 seconds=10 \
#       pretrain --nodes=2 --gpus-per-node=8 --time=24:00:00 configs/pretrain/adversarial.yaml epochs=100 \
#       export --time=1:00:00 \
#       study --array=0-15 --time=12:00:00 configs/study/paper.yaml data=PTBXL
#
# After the name of a stage come its flags of sbatch, each in one word, and the words of its command (see the .sbatch file
# of that name). A stage may be left out. Shards are in OUT/shards, the run in OUT/run, its encoder in OUT/run/encoder, the study in
# OUT/study. Where a stage fails, the later ones are cancelled; the same command again skips what is done.

set -euo pipefail
UMBRA_HOME=${UMBRA_HOME:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
export UMBRA_HOME
source "$UMBRA_HOME/slurm/common.sh"

STAGES=(shard pretrain export study)
jobs=() stage="" flags=() words=() data=""

# position STAGE: its place among the stages, from 1; 0 for another word.
position() {
    local number
    for number in "${!STAGES[@]}"; do
        [[ ${STAGES[number]} != "$1" ]] || { echo $((number + 1)); return; }
    done
    echo 0
}

# submit: the stage that was read last, after the one before it.
submit() {
    local own=() after=() word_ given job
    case $stage in
        shard) own=("output=$out/shards") data=$out/shards ;;
        pretrain) own=("run=$out/run" ${data:+"data.path=$data"}) ;;
        export) own=("run=$out/run") ;;
        study) own=("output=$out/study") ;;
    esac
    for word_ in "${own[@]}"; do
        for given in "${words[@]}"; do # also data.path.NAME=DIR, which data.path=DIR after it would replace
            [[ $given != "${word_%%=*}"[.=]* ]] || cancel "$stage: the pipeline sets ${word_%%=*} itself: leave ${given%%=*} out"
        done
    done
    ((${#jobs[@]} == 0)) || after=("--dependency=afterok:${jobs[-1]}" --kill-on-invalid-dep=yes)
    job=$(sbatch --parsable "${after[@]}" "${flags[@]}" "$UMBRA_HOME/slurm/$stage.sbatch" "${words[@]}" "${own[@]}") ||
        cancel "the stage $stage cannot be submitted"
    echo "$stage: job ${job%%;*}${after[0]:+ after ${jobs[-1]}}"
    jobs+=("${job%%;*}")
}

# cancel WHY: ends, and takes back what was submitted.
cancel() {
    ((${#jobs[@]} == 0)) || scancel "${jobs[@]}"
    fail "$1"
}

out=${1:-}
[[ -n $out && $out != -* && $out != *=* && $(position "$out") == 0 ]] ||
    fail "usage: slurm/pipeline.sh OUT shard|pretrain|export|study FLAGS WORDS ... (see the top of the file)"
shift
for argument in "$@"; do
    if (($(position "$argument"))); then
        [[ -z $stage ]] || submit
        (($(position "$argument") > $(position "$stage"))) || cancel "the stages come in this order: ${STAGES[*]}"
        stage=$argument flags=() words=()
    elif [[ -z $stage ]]; then
        fail "$argument stands before the first stage (${STAGES[*]})"
    elif [[ $argument == -* ]]; then
        flags+=("$argument")
    else
        words+=("$argument")
    fi
done
[[ -n $stage ]] || fail "name a stage: ${STAGES[*]}"
submit
echo "to end them all: scancel ${jobs[*]}"
