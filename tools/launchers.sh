# Sourced by dist_*.sh and slurm_*.sh, which document their arguments.

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-$(command -v python || command -v python3)}
export PYTHONPATH="$(dirname "$TOOLS")${PYTHONPATH:+:$PYTHONPATH}"

# usage ARGUMENTS: print how the script is called.
usage() {
    echo "usage: $0 $*" >&2
    exit 2
}

# require_count NAME VALUE: stop unless the value is a number of processes.
require_count() {
    [[ $2 =~ ^[1-9][0-9]*$ ]] && return
    echo "$(basename "$0"): error: $1 must be a number from 1 on, got '$2'" >&2
    exit 2
}

# launch_dist GPUS TOOL [arguments of the tool]
launch_dist() {
    require_count GPUS "$1"
    local nnodes=${NNODES:-1} port=29500
    [ "$nnodes" != 1 ] || port=0  # any free one
    exec "$PYTHON" "$TOOLS/launch.py" \
        --nnodes="$nnodes" \
        --node-rank="${NODE_RANK:-0}" \
        --master-addr="${MASTER_ADDR:-127.0.0.1}" \
        --nproc-per-node="$1" \
        --master-port="${PORT:-$port}" \
        "$TOOLS/$2" --launcher pytorch "${@:3}"
}

# launch_slurm PARTITION JOB_NAME TOOL [arguments of the tool]
launch_slurm() {
    local gpus=${GPUS:-8}
    require_count GPUS "$gpus"
    local gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    # Word splitting of SRUN_ARGS is intended.
    # shellcheck disable=SC2086
    exec srun -p "$1" \
        --job-name="$2" \
        --gres="gpu:$gpus_per_node" \
        --ntasks="$gpus" \
        --ntasks-per-node="$gpus_per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        ${SRUN_ARGS:-} \
        "$PYTHON" -u "$TOOLS/$3" --launcher slurm "${@:4}"
}
