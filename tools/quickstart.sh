#!/usr/bin/env bash
# From a bare machine to a trained and tested CedNet-26 on real handwritten digits.
# Usage: quickstart.sh [--no-venv]
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/.." && pwd)
SCRIPT=quickstart.sh
USE_VENV=1
for arg in "$@"; do
    case $arg in
        --no-venv) USE_VENV=0 ;;
        -h | --help)
            echo "usage: $0 [--no-venv]"
            echo "  --no-venv  install what is missing into the current environment, not ./.venv"
            exit ;;
        *)
            echo "$SCRIPT: error: unknown option $arg" >&2
            exit 2 ;;
    esac
done
# shellcheck source=tools/environment.sh
. "$ROOT/tools/environment.sh"
cd "$ROOT"

activate_environment
export PYTHON  # for dist_train.sh and dist_test.sh
install_base
install_mmcv_lite
install_mmcontext

CONFIG=configs/cednet/cednet26_digits.py
WORK_DIR=work_dirs/cednet26_digits
UNFINISHED=$WORK_DIR/.unfinished

"$PYTHON" tools/dataset_converters/digits_imagenet.py

# The config is made for 64 images per step: two processes, or one if there is one GPU.
PROCESSES=$("$PYTHON" -c 'import torch; print(min(torch.cuda.device_count() or 2, 2))')
RESUME=()
if [ -e "$UNFINISHED" ]; then
    RESUME=(--resume auto)
fi
say "Training $CONFIG in $PROCESSES processes"
mkdir -p "$WORK_DIR"
touch "$UNFINISHED"
bash tools/dist_train.sh "$CONFIG" "$PROCESSES" ${RESUME[@]+"${RESUME[@]}"} \
    --cfg-options train_dataloader.batch_size=$((64 / PROCESSES))
rm -f "$UNFINISHED"

CHECKPOINT=$(cat "$WORK_DIR/last_checkpoint")
say "Testing $CHECKPOINT"
bash tools/dist_test.sh "$CONFIG" "$CHECKPOINT" "$PROCESSES" \
    --out "$WORK_DIR/test.json" --out-item metrics

say "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
"$PYTHON" - "$WORK_DIR" <<'PY'
import json
import sys

with open(f'{sys.argv[1]}/test.json') as file:
    print(f'top-1 on the 364 validation digits: {json.load(file)["accuracy/top1"]:.2f} %')
PY
echo "checkpoint: $CHECKPOINT"
echo "logs:       $ROOT/$WORK_DIR"
