#!/usr/bin/env bash
# Every figure of a GPU that decides anything, in one command bounded in time; see gpu_campaign.md.
# Usage: gpu_campaign.sh [--minutes M] [--out DIR] [--parts abc] [--again] [--dry-run] [...]
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT:$ROOT/tools/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m gpu.campaign "$@"
