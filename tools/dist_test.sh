#!/usr/bin/env bash
# Usage: dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR, PORT. Without a GPU: GPUS CPU processes.
set -euo pipefail
# shellcheck source=tools/launchers.sh
. "$(dirname "$0")/launchers.sh"

[ $# -ge 3 ] || usage 'CONFIG CHECKPOINT GPUS [options of test.py]'
launch_dist "$3" test.py "$1" "$2" "${@:4}"
