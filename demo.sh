#!/usr/bin/env bash
# The main job on an embedded default: recordings -> shards -> pre-training -> encoder -> linear probe.
# Called by `make demo`, which sets PATH; DATA= (a PTB-XL folder, empty: synthetic), OUT=, SEED=, PATIENTS=, EPOCHS=.
# A second call goes on where the first was cut; a folder made with other settings is refused, never deleted.
set -euo pipefail
cd "$(dirname "$0")"
DATA=${DATA:-} OUT=${OUT:-demo${DATA:+-data}} SEED=${SEED:-0} PATIENTS=${PATIENTS:-1000} EPOCHS=${EPOCHS:-80}
say() { printf '\n== %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
processes=$((gpus > 0 ? gpus : 2))
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir -p "$OUT"
if [ -n "$DATA" ]; then
  config=configs/shard/ptbxl.yaml input=$DATA
else
  config=configs/shard/wfdb.yaml input=$OUT/recordings
  say "1/5 synthetic recordings"
  run python -m sharding synth output="$OUT/recordings" patients="$PATIENTS" seed="$SEED"
fi
say "2/5 shards"
run python -m sharding build "$config" input="$input" output="$OUT/shards" rate=100 seconds=10 workers=2 \
  split.train=0.6 split.val=0.15 split.test=0.25
say "3/5 pre-training on $processes processes"
run deepspeed --num_gpus "$processes" --master_port "$port" trainer/pretrain.py configs/pretrain/adversarial.yaml data.path="$OUT/shards" run="$OUT/run" \
  seed="$SEED" epochs="$EPOCHS" batch.global=64 encoder.args.width=16 encoder.args.embedding=128 projector.hidden=256 projector.out=64 log.every=40
if grep -qs '"status": "interrupted"' "$OUT/run/run.json"; then exit 130; fi  # the same command goes on
say "4/5 encoder"
run python -m trainer.export run="$OUT/run"
say "5/5 linear probe, pre-trained against random"
for task in rhythm sex; do
  for encoder in "$OUT/run/encoder" random; do
    run python -m trainer.transfer "configs/transfer/$task.yaml" encoder="$encoder" like="$OUT/run/encoder" data="$OUT/shards" \
      seed="$SEED" output="$OUT/transfer/$task-$(basename "$encoder")"
  done
done
say "macro AUROC of a linear probe on test patients (95 % by patients)"
python -m trainer.transfer compare "$OUT"/transfer/*/result.json
echo "figures: $OUT/run/figures/  encoder: $OUT/run/encoder/  metrics: $OUT/run/metrics.jsonl"
echo "next:    python -c 'import umbra; print(umbra.load_encoder(\"$OUT/run/encoder\"))'"
