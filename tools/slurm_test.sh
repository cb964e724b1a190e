#!/usr/bin/env bash
# Usage: slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS as in the mm libraries.
set -euo pipefail
# shellcheck source=tools/launchers.sh
. "$(dirname "$0")/launchers.sh"

[ $# -ge 4 ] || usage 'PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]'
launch_slurm "$1" "$2" test.py "$3" "$4" "${@:5}"
