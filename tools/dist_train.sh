#!/usr/bin/env bash
# Usage: dist_train.sh CONFIG GPUS [options of train.py]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR, PORT. Without a GPU: GPUS CPU processes.
set -euo pipefail
# shellcheck source=tools/launchers.sh
. "$(dirname "$0")/launchers.sh"

[ $# -ge 2 ] || usage 'CONFIG GPUS [options of train.py]'
launch_dist "$2" train.py "$1" "${@:3}"
