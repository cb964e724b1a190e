#!/usr/bin/env bash
# All GPU measurements that matter, in one command with a time limit; see gpu_campaign.md.
# Usage: gpu_campaign.sh [--minutes M] [--out DIR] [--parts abc] [--again] [--dry-run] [...]
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT:$ROOT/tools/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m gpu.campaign "$@"
