#!/usr/bin/env bash
# A run on a machine with a GPU, which may be killed at any moment:
#
#     bench/gpu_report.sh first|second [SECONDS]       default: 240, 350
#
# first:  does it build and work there, and which variant of the kernels is the fastest?
# second: every goal, the errors over all numbers, a grid of sizes, counters, a memory checker.
#
# The results go to $OUT, or ./gpu-report/first and second: summary.txt, report.tar.gz with every log, packed anew
# after each part, what was built, and the results as JSON. The parts go by their worth, each within
# its own time, the rest of SECONDS at the most; one that fails stops no other. The ends of their
# output are printed. No network is needed. PYTHON names the interpreter, which has torch, Triton,
# setuptools and what the tests and the bench need; SOURCE_COMMIT the commit that this is a copy of.
set -u
cd "$(dirname "$0")/.." || exit 2

stage=${1:-}
case $stage in
  first) seconds=${2:-240} ;;
  second) seconds=${2:-350} ;;
  *) sed -n '2,5s/^# \{0,1\}//p' bench/gpu_report.sh; exit 2 ;;
esac
results=${OUT:-gpu-report/$stage}
mkdir -p "$results" || exit 2
results=$(cd "$results" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/gpu.XXXXXX") || exit 2
variants=
current=
trap 'kill $variants $current 2>/dev/null; rm -rf "$work"' EXIT
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

say() { echo "$*" | tee -a "$results/summary.txt"; }

# By renaming, so that a kill leaves the archive before. A log that grows meanwhile is tar's rc 1.
pack() {
  tar -C "$work" -czf "$results/.report.tar.gz" logs 2>/dev/null
  [ $? -le 1 ] && mv "$results/.report.tar.gz" "$results/report.tar.gz"
  for file in variants.json goals/goals.json check-full.json grid/result.json by-triton/result.json; do
    [ -f "$logs/$file" ] && cp "$logs/$file" "$results/$(echo "$file" | sed 's,/result,,; s,/goals,,')"
  done
}

# part NAME SECONDS LINES COMMAND...: the last LINES of its output are printed.
part() {
  local name=$1 budget=$2 lines=$3 left=$((seconds - SECONDS)) start=$SECONDS code note=
  shift 3
  if [ "$left" -lt 8 ]; then
    say "$(printf '%-11s skipped: no time is left' "$name")"
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
  say "$(printf '%-11s rc %-3s %4s s, at %s s%s' "$name" "$code" "$((SECONDS - start))" "$SECONDS" "$note")"
  tail -n "$lines" "$logs/$name.log" | cut -c1-180
  pack
}

skip() { say "$(printf '%-11s skipped: %s' "$1" "$2")"; }

facts() {
  date -u +%FT%TZ
  uname -srm
  nproc
  g++ --version | head -1
  "$python" --version
  "$python" - <<'PYTHON'
from importlib.metadata import PackageNotFoundError, version

for name in ("torch", "triton", "numpy", "setuptools", "pytest", "hypothesis"):
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "is missing")
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
  check+=(--kernel-name-exclude kns=elementwise "$python" -m bench.gpu_kernels)
  "${check[@]}" --past-the-end >"$logs/planted.log" 2>&1
  if grep -q "Invalid __global__" "$logs/planted.log"; then
    echo "an access past the end was seen, as it should be"
  else
    cat "$logs/planted.log"
    echo "an access past the end was NOT seen"
    return 3
  fi
  "${check[@]}" --sizes 1 1023 1025 --columns 33 1000
}

counters() {
  local wanted=gpu__time_duration.sum,dram__bytes.sum.per_second
  wanted=$wanted,sm__inst_issued.avg.pct_of_peak_sustained_active
  wanted=$wanted,sm__warps_active.avg.pct_of_peak_sustained_active
  ncu --clock-control none --kernel-name-base function --kernel-name 'regex:^fused_sigmoid' \
    --launch-count 12 --metrics "$wanted" "$python" - <<'PYTHON'
import torch

import fused_sigmoid

for dtype in (torch.bfloat16, torch.float32):
    x = (torch.randn(64 << 20, device="cuda") * 3).to(dtype)
    for _ in range(2):
        fused_sigmoid.sigmoid(x)
        fused_sigmoid.sigmoid_with_derivative(x)
        torch.ops.fused_sigmoid.sigmoid_backward(x, x)
PYTHON
}
export -f facts build memcheck counters

gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")' 2>/dev/null)
say "GPU report, $stage, $(date -u +%F), ${gpu:-no GPU}"
part facts 20 14 bash -c facts

# Beside the build, which it does not need.
if [ "$stage" = first ] && [ -n "$gpu" ]; then
  timeout -k 3 "$((seconds < 150 ? seconds : 150))" "$python" -m bench.gpu_variants \
    --json "$logs/variants.json" --seconds 75 >"$logs/variants.log" 2>&1 &
  variants=$!
fi
part build 130 4 bash -c build
cp fused_sigmoid/_C_torch_*.so "$results/" 2>/dev/null
part info 30 12 "$python" -m fused_sigmoid info

# The longest first, so that no worker is left with one.
tests=("$python" -m pytest -q -n 12 --maxfail=30 -p no:cacheprovider --durations 5 -m gpu tests/test_gpu_bench.py tests/test_gpu_launch.py tests/test_modes.py tests/test_company_gpu.py)
bench=("$python" -m bench --device cuda --no-progress --no-pictures --row-seconds 0.2 --sample-seconds 0.0005)
if [ -z "$gpu" ]; then
  skip "the rest" "torch sees no CUDA device"
elif [ "$stage" = first ]; then
  wait "$variants"
  code=$?
  variants=
  [ "$code" = 0 ] || failed=1
  say "$(printf '%-11s rc %-3s at %s s' variants "$code" "$SECONDS")"
  grep -E '^bits|(forward|pair|step.*) +(bfloat16|float32)' "$logs/variants.log" | cut -c1-130
  pack
  part tests 100 40 "${tests[@]}"
  part goals 75 45 "${bench[@]}" --goals --peers torch --dtypes float32 bfloat16 --time-limit 60 --output "$logs/goals"
else
  part tests 100 6 "${tests[@]}"
  part goals 130 85 "${bench[@]}" --goals --time-limit 105 --output "$logs/goals"
  part check-full 80 8 "$python" -m fused_sigmoid check --full --device cuda --json "$logs/check-full.json"
  part grid 50 4 "${bench[@]}" --peers torch --sizes 1Ki 64Ki 1Mi 4Mi 64Mi --dtypes float32 bfloat16 --time-limit 40 --output "$logs/grid"
  part by-triton 20 8 env FUSED_SIGMOID_LAUNCH=triton "${bench[@]}" --peers torch --sizes 1Ki --work forward-fresh training --dtypes float32 --time-limit 10 --output "$logs/by-triton"
  if command -v ncu >/dev/null; then part counters 50 90 bash -c counters; else skip counters "there is no ncu"; fi
  if command -v compute-sanitizer >/dev/null; then part memcheck 90 8 bash -c memcheck; else skip memcheck "there is no compute-sanitizer"; fi
fi
pack
say "$SECONDS s in all"
exit "$failed"
