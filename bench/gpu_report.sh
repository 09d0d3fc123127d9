#!/usr/bin/env bash
# Everything that a machine with a GPU can say about the library, in one folder and nine minutes:
#
#     bench/gpu_report.sh [--short] [FOLDER]         default: $OUT, or ./gpu-report
#
# Each part has its own time, and the others go on when one fails; the summary names them all. No
# network is needed. PYTHON names the interpreter, which has torch, Triton, pip and setuptools.
# With --short nothing is built, and a minute has to do: a try of the script itself.
set -u
cd "$(dirname "$0")/.." || exit 2

short=
if [ "${1:-}" = --short ]; then short=1; shift; fi
folder=${1:-${OUT:-gpu-report}}
python=${PYTHON:-python3}
seconds_in_all=525
[ -n "$short" ] && seconds_in_all=60
mkdir -p "$folder/parts" || exit 2
folder=$(cd "$folder" && pwd)
parts=$folder/parts
summary=$folder/summary.txt
: >"$summary"
failed=0
export PYTHONUNBUFFERED=1

say() { echo "$*" | tee -a "$summary"; }

# part NAME SECONDS COMMAND...: its output goes to parts/NAME.log, a line to the summary.
part() {
  local name=$1 budget=$2 left=$((seconds_in_all - SECONDS)) start=$SECONDS code
  shift 2
  if [ "$left" -lt 5 ]; then say "$(printf '%-22s skipped: no time is left' "$name")"; return; fi
  [ "$budget" -gt "$left" ] && budget=$left
  timeout -k 5 "$budget" "$@" >"$parts/$name.log" 2>&1
  code=$?
  local note=
  [ "$code" = 124 ] || [ "$code" = 137 ] && note=", stopped after its $budget s"
  [ "$code" = 0 ] || failed=1
  say "$(printf '%-22s rc %-3s %4s s%s' "$name" "$code" "$((SECONDS - start))" "$note")"
}

skip() { say "$(printf '%-22s skipped: %s' "$1" "$2")"; }

# missing MODULE...: the first that Python does not have, or nothing.
missing() {
  "$python" - "$@" <<'PYTHON'
import importlib.util, sys
print(next((name for name in sys.argv[1:] if importlib.util.find_spec(name) is None), ""))
PYTHON
}

# on_gpu NAME MODULES SECONDS COMMAND...: a part that needs a GPU and the modules, else a skip.
on_gpu() {
  local name=$1 modules=$2 lacking
  shift 2
  if [ -z "$gpu" ]; then skip "$name" "torch sees no CUDA device"; return; fi
  # shellcheck disable=SC2086
  lacking=$(missing $modules)
  if [ -n "$lacking" ]; then skip "$name" "Python has no $lacking"; return; fi
  part "$name" "$@"
}

describe() {
  date -u +%FT%TZ
  git log -1 --format='commit %H' 2>/dev/null
  git status --short 2>/dev/null | head -20
  uname -srm
  "$python" --version
  "$python" -m pip list 2>/dev/null | grep -iE '^(torch|triton|numpy|flag|setuptools|pytest) *'
  nvidia-smi
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,mig.mode.current --format=csv
  nvcc --version
  true
}

build() {
  "$python" -m pip install --no-build-isolation --no-deps --no-index -e . ||
    "$python" setup.py build_ext --inplace
}

memcheck() {
  # Without torch's cache every tensor is an allocation of its own, past whose end memcheck sees.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
    "$python" -m bench.gpu_kernels
}

export -f describe build memcheck
export python
gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")' 2>/dev/null)
say "GPU report, $(date -u +%F), ${gpu:-no GPU}"

part machine 20 bash -c describe
if [ -n "$short" ]; then skip build "--short"; else part build 150 bash -c build; fi
part info 40 "$python" -m fused_sigmoid info

on_gpu kernels "triton" 60 "$python" -m bench.gpu_kernels
on_gpu tests "pytest triton" 90 "$python" -m pytest -q -m gpu $(grep -l 'mark\.gpu' tests/test_*.py)
on_gpu check "numpy mpmath tabulate tqdm triton" 60 \
  "$python" -m fused_sigmoid check --device cuda --json "$parts/check.json"
if [ -n "$gpu" ] && ! command -v compute-sanitizer >/dev/null; then
  skip memcheck "there is no compute-sanitizer"
else
  on_gpu memcheck "triton" 60 bash -c memcheck
fi

# More of a row's rounds are there for the asking; these keep within the time.
bench=("$python" -m bench --no-progress --no-pictures --row-seconds 0.25 --sample-seconds 0.0005)
modules="tqdm tabulate matplotlib triton"
on_gpu goals "$modules" 130 "${bench[@]}" --goals --time-limit 100 --output "$parts/goals"
on_gpu check-full "numpy mpmath tabulate tqdm triton" 120 \
  "$python" -m fused_sigmoid check --full --device cuda --json "$parts/check-full.json"
on_gpu grid "$modules" 100 "${bench[@]}" --sizes 1Ki 64Ki 1Mi 4Mi 16Mi 64Mi \
  --dtypes float32 bfloat16 --time-limit 75 --output "$parts/grid"
on_gpu warm "$modules" 40 "${bench[@]}" --sizes 1Mi 2Mi --dtypes float32 bfloat16 \
  --peers torch --cache warm --time-limit 25 --output "$parts/warm"
on_gpu launched-by-triton "$modules" 30 env FUSED_SIGMOID_LAUNCH=triton "${bench[@]}" \
  --sizes 1Ki --work forward-fresh training --dtypes float32 --peers torch --time-limit 15 \
  --output "$parts/launched-by-triton"
lacking=$(missing tqdm tabulate matplotlib triton)
if [ -n "$short" ]; then
  skip static "--short"
elif [ -n "$lacking" ]; then
  skip static "Python has no $lacking"
else
  part static 120 "$python" -m bench --static --output "$parts"
fi

# The few files that most will want at the top, everything in one archive.
for file in "$parts"/check.json "$parts"/check-full.json "$parts"/goals/goals.json "$parts"/static.json; do
  [ -f "$file" ] && cp "$file" "$folder/"
done
[ -f "$parts/grid/result.json" ] && cp "$parts/grid/result.json" "$folder/"
(cd "$parts" && for log in *.log; do echo "==== ${log%.log}"; cat "$log"; done) >"$folder/log.txt"
say "$SECONDS s in all; results in $folder"
tar -C "$folder" -czf "$folder/report.tar.gz" parts summary.txt && rm -rf "$parts"
exit "$failed"
