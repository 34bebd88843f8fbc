#!/usr/bin/env bash
# Everything that only a GPU can show, in at most nine minutes: bash benchmarks/gpu/run.sh [DATASET] > log
# Each part has a time limit of its own, and its results are written when it ends: benchmarks/gpu/results.json.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" -m benchmarks.gpu.run --device cuda --seconds 540 ${1:+--data "$1"}
