#!/bin/bash
# One sitting at a GPU: OUT=folder bash benchmarks/gpu/session.sh, 7 minutes at most.
# Each stage has its own limit and never stops the next one; the table at the end has a line for each.
set -u
cd "$(dirname "$0")/../.."
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD HF_HUB_OFFLINE=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
OUT=${OUT:-out/gpu}
mkdir -p "$OUT"
stage() {
    local name=$1 limit=$2 begin=$SECONDS
    shift 2
    timeout "$limit" "$@" >"$OUT/$name.txt" 2>&1
    echo "$name rc=$? $((SECONDS - begin))s | $(tail -1 "$OUT/$name.txt" | cut -c1-160)" >>"$OUT/table.txt"
}
stage 0doctor 30 python3 -m saekit doctor
stage 1tests 90 python3 -m pytest -q -m gpu tests/gpu tests/unit/sae/kernels
stage 2stages 90 python3 benchmarks/gpu/stages.py
stage 3speed 100 python3 benchmarks/train_throughput.py --size gpt2-24k --device cuda --peer none --repeat 1
stage 4follow 100 python3 -m pytest -q -k float32 tests/benchmarks/test_on_gpu.py
cat "$OUT/2stages.txt" "$OUT/table.txt"
