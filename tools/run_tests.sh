#!/usr/bin/env bash
# Install the full stack (mmcv with operators, mmdet, mmseg, export) and run the test-suite.
# Usage: run_tests.sh [--no-venv] [options of pytest]
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/.." && pwd)
SCRIPT=run_tests.sh
USE_VENV=1
case ${1:-} in
    --no-venv)
        USE_VENV=0
        shift ;;
    -h | --help)
        echo "usage: $0 [--no-venv] [options of pytest]"
        echo "  --no-venv  install what is missing into the current environment, not ./.venv"
        exit ;;
esac
# shellcheck source=tools/environment.sh
. "$ROOT/tools/environment.sh"
cd "$ROOT"

activate_environment
install_base
install_mmcv_with_ops
install_packages mmdet mmsegmentation pycocotools ftfy regex scipy onnx onnxruntime onnxscript \
    safetensors huggingface_hub grad-cam nbclient ipykernel \
    pytest pytest-xdist
install_mmcontext

say "Running the tests"
# One thread per process, as the processes share the cores; tests of threading set their own.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$PYTHON" -m pytest -q -n logical --maxprocesses 4 --dist loadfile "$@"
