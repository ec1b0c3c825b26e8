#!/usr/bin/env bash
# The main job on an embedded default: recordings -> shards -> pre-training, with learned masks and with random ones ->
# encoders -> linear probe -> a page.
# Called by `make demo`, which sets PATH; DATA= (a PTB-XL folder, empty: synthetic), OUT=, SEED=, PATIENTS=, EPOCHS=.
# A second call skips what is done and goes on where the first was cut; a folder made with other settings is refused,
# never deleted.
set -euo pipefail
cd "$(dirname "$0")"
DATA=${DATA:-} OUT=${OUT:-demo${DATA:+-data}} SEED=${SEED:-0} PATIENTS=${PATIENTS:-1000} EPOCHS=${EPOCHS:-80}
say() { printf '\n== %s\n' "$*"; }
fail() { echo "error: $1" >&2; exit "${2:-2}"; }
for knob in SEED PATIENTS EPOCHS; do
  [[ ${!knob} =~ ^(0|[1-9][0-9]{0,8})$ ]] || fail "$knob=${!knob} must be a whole number"
done

before=
once() {  # PRODUCT COMMAND...: skips a command that has ended well with these words, after the last of the step before
  local product=$1 mark words
  mark=$(dirname "$1")/.$(basename "$1").done words=${*:2}
  words=${words/ --master_port ${port:-none}/}
  if [ -e "$product" ] && [ "$(cat "$mark" 2>/dev/null)" = "$words" ] && ! [ "$before" -nt "$mark" ]; then
    echo "done before: $product"
  else
    printf '$%s\n' "$(printf ' %q' "${@:2}")"
    "${@:2}" || failed $? "$mark" "$words"
    if grep -qs '"status": "interrupted"' "$product/run.json"; then exit 130; fi
    mkdir -p "$(dirname "$mark")"
    printf '%s' "$words" > "$mark"
  fi
  before=$mark
}

failed() {  # CODE MARK WORDS
  if [ -e "$2" ] && [ "$(cat "$2")" != "$3" ]; then
    fail "$OUT holds a demo with other settings: set another OUT=DIR, or delete it yourself" "$1"
  fi
  exit "$1"
}

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
processes=$((gpus > 0 ? gpus : 2))
most=$((${#DATA} > 0 || PATIENTS > 128 ? 64 : PATIENTS / 2))  # ECGs of a batch: fewer than there are for training
batch=$((most / processes * processes))
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir -p "$OUT"
if [ -n "$DATA" ]; then
  config=configs/shard/ptbxl.yaml input=$DATA
else
  config=configs/shard/wfdb.yaml input=$OUT/recordings
  say "1/5 synthetic recordings"
  once "$OUT/recordings" python -m sharding synth output="$OUT/recordings" patients="$PATIENTS" seed="$SEED"
fi
say "2/5 shards"
once "$OUT/shards" python -m sharding build "$config" input="$input" output="$OUT/shards" rate=100 seconds=10 workers=2 \
  split.train=0.6 split.val=0.15 split.test=0.25
for run in run:adversarial random-masks:block_mask; do
  name=${run%:*} method=${run#*:}
  say "3/5 pre-training on $processes processes: $method"
  once "$OUT/$name" deepspeed --num_gpus "$processes" --master_port "$port" trainer/pretrain.py \
    "configs/pretrain/$method.yaml" data.path="$OUT/shards" run="$OUT/$name" seed="$SEED" epochs="$EPOCHS" \
    batch.global=$batch encoder.args.width=16 encoder.args.embedding=128 projector.hidden=256 projector.out=64 log.every=40
  say "4/5 encoder"
  once "$OUT/$name/encoder" python -m trainer.export run="$OUT/$name"
done
say "5/5 linear probe: learned masks, random masks, untrained"
for task in rhythm sex; do
  for encoder in "$OUT/run/encoder" "$OUT/random-masks/encoder" random; do
    result=$OUT/transfer/$task-$(basename "${encoder%/encoder}")
    once "$result" python -m trainer.transfer "configs/transfer/$task.yaml" encoder="$encoder" \
      like="$OUT/run/encoder" data="$OUT/shards" seed="$SEED" output="$result"
  done
done
say "macro AUROC of a linear probe on test patients (95 % by patients)"
once "$OUT/index.html" python -m trainer.demo output="$OUT"
for task in rhythm sex; do
  python -m trainer.transfer compare "$OUT"/transfer/$task-{run,random-masks,random}/result.json
done
out=$(cd "$OUT" && pwd)
echo "encoder: $out/run/encoder, to be used from any shell like this:"
printf '  "%s" -c "import umbra; print(umbra.load_encoder('"'%s'"'))"\n' "$(command -v python)" "$out/run/encoder"
echo "Open this page: figures, curves, masks, and what to do next"
echo "$out/index.html"
