#!/usr/bin/env bash
# Usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS as in the mm libraries.
set -euo pipefail
# shellcheck source=tools/launchers.sh
. "$(dirname "$0")/launchers.sh"

[ $# -ge 4 ] || usage 'PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]'
launch_slurm "$1" "$2" train.py "$3" --work-dir="$4" "${@:5}"
