#!/usr/bin/env bash
# What a visit to a machine with a GPU runs; it may end at any moment:
#
#     bench/gpu_visit.sh first|second [SECONDS]       default: 260, 360
#
# first:  does it build, do the tests pass, are torch's goals met in float32 and bfloat16?
# second: tests, every goal, the errors over all numbers, a grid of sizes, what Triton's launches
#         cost, the GPU's counters, a memory checker.
# It leaves summary.txt, report.tar.gz with every log, and results in $OUT (gpu-report/first and
# second). Of the second, copy goals.json, grid.json, check.json and by-triton.json into
# bench/results/<machine>/, the kernels' lines of logs/counters.log as counters.txt, and run
# `make figures`. The goals of the first are a part of these.
#
# The parts go by their worth, each within its own time, the rest of SECONDS at the most; one that
# fails stops no other, and after each the archive is packed anew. No network is needed. PYTHON names
# the interpreter, which has torch, Triton, setuptools and what the tests and the bench need;
# SOURCE_COMMIT the commit that this is a copy of.
set -u
cd "$(dirname "$0")/.." || exit 2

stage=${1:-}
case $stage in
  first) seconds=${2:-260} ;;
  second) seconds=${2:-360} ;;
  *) sed -n '2,8s/^# \{0,1\}//p' bench/gpu_visit.sh; exit 2 ;;
esac
results=${OUT:-gpu-report/$stage}
mkdir -p "$results" || exit 2
results=$(cd "$results" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/gpu.XXXXXX") || exit 2
current=
trap 'kill $current 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
logs=$work/logs
mkdir "$logs"
python=${PYTHON:-python3}
# Ninja lies beside the interpreter.
executable=$("$python" -c 'import sys; print(sys.executable)' 2>/dev/null)
[ -n "$executable" ] && PATH=$(dirname "$executable"):$PATH
export PATH python logs PYTHONUNBUFFERED=1
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor
failed=0
: >"$results/summary.txt"

say() { printf "$@" | tee -a "$results/summary.txt"; }
skip() { say '%-11s skipped: %s\n' "$1" "$2"; }

# By renaming, so that a kill leaves the archive before. A log that grows meanwhile is tar's rc 1.
pack() {
  tar -C "$work" -czf "$results/.report.tar.gz" logs 2>/dev/null
  [ $? -le 1 ] && mv "$results/.report.tar.gz" "$results/report.tar.gz"
  cp "$logs"/goals/goals.json "$logs"/grid/grid.json "$logs"/check.json "$results" 2>/dev/null
  cp "$logs"/by-triton/grid.json "$results/by-triton.json" 2>/dev/null
}

# part NAME SECONDS LINES COMMAND...: the last LINES of its output are printed.
part() {
  local name=$1 budget=$2 lines=$3 left=$((seconds - SECONDS)) start=$SECONDS code note=
  shift 3
  if [ "$left" -lt 8 ]; then
    skip "$name" "no time is left"
    failed=1
    return
  fi
  [ "$budget" -gt $((left - 4)) ] && budget=$((left - 4))
  # In the background, so that a signal is heard at once.
  timeout -k 3 "$budget" "$@" >"$logs/$name.log" 2>&1 &
  current=$!
  wait "$current"
  code=$?
  current=
  [ "$code" = 124 ] || [ "$code" = 137 ] && note=", stopped after its $budget s"
  [ "$code" = 0 ] || failed=1
  say '%-11s rc %-3s %4s s, at %s s%s\n' "$name" "$code" $((SECONDS - start)) "$SECONDS" "$note"
  tail -n "$lines" "$logs/$name.log" | cut -c1-180
  pack
}

facts() {
  date -u +%FT%TZ
  uname -srm
  nproc
  g++ --version | head -1
  "$python" --version
  "$python" - <<'PYTHON'
from importlib.metadata import distributions

wanted = ("torch", "triton", "numpy", "setuptools", "pytest", "hypothesis")
print(*sorted(f"{each.name} {each.version}" for each in distributions() if each.name in wanted))
PYTHON
  nvidia-smi --format=csv,noheader \
    --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu
  true
}

build() {
  "$python" -c 'import fused_sigmoid' 2>/dev/null || "$python" setup.py -q build_ext --inplace
  "$python" -c 'import fused_sigmoid'
}

memcheck() {
  # Without torch's cache every tensor is an allocation of its own, past whose end memcheck sees.
  # Torch's kernels are left out, and calls that fail on purpose: the driver is asked for each
  # parameter of a kernel until there are no more. First, that the checker sees an access at all.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  local check=(compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9)
  check+=(--kernel-name-exclude kns=elementwise "$python")
  "${check[@]}" tests/test_gpu_kernels.py --past-the-end >"$logs/planted.log" 2>&1
  if ! grep -q "Invalid __global__" "$logs/planted.log"; then
    cat "$logs/planted.log"
    echo "an access past the end was NOT seen"
    return 3
  fi
  echo "an access past the end was seen, as it should be"
  # It is slow: sizes around a block's, and two lengths of rows.
  "${check[@]}" -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu_kernels.py \
    tests/test_loss_gpu.py -k "few_elements or rows_of_33 or rows_of_1000"
}

counters() {
  local wanted=gpu__time_duration.sum,dram__bytes.sum.per_second
  wanted=$wanted,sm__inst_issued.avg.pct_of_peak_sustained_active
  wanted=$wanted,sm__warps_active.avg.pct_of_peak_sustained_active
  ncu --clock-control none --kernel-name-base function --kernel-name 'regex:^fused_' \
    --launch-count 20 --metrics "$wanted" "$python" - <<'PYTHON'
import torch

import fused_sigmoid

for dtype in (torch.bfloat16, torch.float32):
    x = (torch.randn(64 << 20, device="cuda") * 3).to(dtype)
    leaf, labels = x.clone().requires_grad_(), (x > 1).to(dtype)
    for _ in range(2):
        fused_sigmoid.sigmoid(x)
        fused_sigmoid.sigmoid_with_derivative(x)
        torch.ops.fused_sigmoid.sigmoid_backward(x, x)
        fused_sigmoid.binary_cross_entropy_with_logits(leaf, labels)
PYTHON
}
export -f facts build memcheck counters

gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")' 2>/dev/null)
say 'GPU visit, %s, %s, %s\n' "$stage" "$(date -u +%F)" "${gpu:-no GPU}"
part facts 20 14 bash -c facts
part build 130 4 bash -c build
cp fused_sigmoid/_C_torch_*.so "$results/" 2>/dev/null
part info 30 12 "$python" -m fused_sigmoid info

# The longest first, so that no worker is left with one.
tests=("$python" -m pytest -q -n 12 --maxfail=30 -p no:cacheprovider --durations 5 -m gpu)
tests+=(tests/test_loss_gpu.py tests/test_gpu_kernels.py tests/test_gpu_bench.py)
tests+=(tests/test_gpu_launch.py tests/test_modes.py tests/test_company_gpu.py)
bench=("$python" -m bench --device cuda --no-progress --row-seconds 0.2 --sample-seconds 0.0005)
if [ -z "$gpu" ]; then
  skip "the rest" "torch sees no CUDA device"
elif [ "$stage" = first ]; then
  part tests 130 40 "${tests[@]}"
  part goals 75 45 "${bench[@]}" --goals --peers torch --dtypes float32 bfloat16 --time-limit 60 --output "$logs/goals"
else
  part tests 110 6 "${tests[@]}"
  part goals 130 85 "${bench[@]}" --goals --time-limit 105 --output "$logs/goals"
  part check-full 80 8 "$python" -m fused_sigmoid check --full --device cuda --json "$logs/check.json"
  part grid 50 4 "${bench[@]}" --peers torch --sizes 1Ki 64Ki 1Mi 4Mi 64Mi --dtypes float32 bfloat16 --time-limit 40 --output "$logs/grid"
  part by-triton 20 8 env FUSED_SIGMOID_LAUNCH=triton "${bench[@]}" --peers torch --sizes 1Ki --work forward-fresh training --dtypes float32 --time-limit 10 --output "$logs/by-triton"
  if command -v ncu >/dev/null; then part counters 50 150 bash -c counters; else skip counters "there is no ncu"; fi
  if command -v compute-sanitizer >/dev/null; then part memcheck 90 8 bash -c memcheck; else skip memcheck "there is no compute-sanitizer"; fi
fi
pack
say '%s s in all\n' "$SECONDS"
exit "$failed"
