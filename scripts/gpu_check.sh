#!/usr/bin/env bash
# What the first minutes on a GPU have to show: scripts/gpu_check.sh [--dry-run] [FOLDER]
# PYTHON names the interpreter (python3); it needs torch, triton and transformers, no network and no
# installation. MINUTES (8) is the limit of all stages together. FOLDER, else $OUT, else
# results/gpu_check/<date>, gets rows.jsonl, kernels.jsonl, claims.jsonl, log.txt and table.txt; nothing
# else is written. Exit status 1 where a stage failed, 2 where there is no CUDA device.
# --dry-run passes through every stage on the CPU, with small sizes, in Triton's interpreter.
set -uo pipefail
dry=
[ "${1-}" != --dry-run ] || { dry=--dry-run && shift; }
python=${PYTHON:-python3}
folder=${1:-${OUT:-results/gpu_check/$(date +%Y-%m-%d-%H%M%S)}}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
rows=$folder/rows.jsonl log=$folder/log.txt
[ ! -e "$rows" ] || { echo "error: $folder holds a check already: give another folder" >&2; exit 2; }
scratch=$(mktemp -d) || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export TRITON_CACHE_DIR=$scratch/triton GIT_OPTIONAL_LOCKS=0 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
end=$((SECONDS + 60 * ${MINUTES:-8}))
failed=0
if [ -n "$dry" ]; then export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES=; else unset TRITON_INTERPRET; fi

finish() {
  "$python" -m scripts.gpu_check.table "$folder" 2>&1 | tee "$folder/table.txt"
  rm -rf "$scratch"
}
job=
trap finish EXIT
trap 'kill $job 2>/dev/null; exit 143' TERM INT HUP

note() { # STAGE STATUS SECONDS WHY
  printf '{"stage": "%s", "status": "%s", "seconds": %d}\n' "$1" "$2" "$3" >>"$rows"
  echo "$1: $2, $3 s${4:+: $4}"
}

stage() { # NAME LIMIT NEEDED MODULE ARGUMENTS...: at most LIMIT seconds, not with less than NEEDED left
  local name=$1 limit=$2 needed=$3 began=$SECONDS left=$((end - SECONDS)) code=0
  shift 3
  if [ "$left" -lt "$needed" ]; then note "$name" skipped 0 "$left s are left"; return; fi
  [ "$limit" -le "$left" ] || limit=$left
  printf '\n== %s, at most %d s: %s\n' "$name" "$limit" "$*" >>"$log"
  timeout --kill-after=5 "$limit" "$python" -m "$@" >>"$log" 2>&1 &
  job=$!
  wait $job || code=$?
  case $code in
  0) note "$name" ok $((SECONDS - began)) ;;
  124 | 137) note "$name" "out of time" $((SECONDS - began)) "see $log" && failed=1 ;;
  *) note "$name" failed $((SECONDS - began)) "exit status $code, see $log" && failed=1 ;;
  esac
  return "$code"
}

check() { stage "$1" "$2" 10 "scripts.gpu_check.$1" "$folder" $dry; }
bench() { # NAME LIMIT MODULE ARGUMENTS...: no figure is begun in the last 15 s
  local hundredths=$((($2 - 15) * 100 / 60))
  stage "$1" "$2" 20 "scripts.$3" --shapes qwen2.5-vl-7b --out "$folder/kernels.jsonl" "${@:4}" \
    --minutes "$((hundredths / 100)).$(printf %02d $((hundredths % 100)))"
}
tests() { # FILES...: of the kernels, on odd shapes, where pytest is installed
  "$python" -c 'import pytest' 2>/dev/null || { note tests skipped 0 "pytest is not installed"; return; }
  local workers=()
  if [ -z "$dry" ] && "$python" -c 'import xdist' 2>/dev/null; then
    workers=(-n logical --maxprocesses 8 --dist worksteal)
  fi
  stage tests 120 60 pytest -p no:cacheprovider --maxfail=20 --ignore=tests/kernels/test_gates.py \
    "${workers[@]}" "$@"
}
claims() { # NAME LIMIT NEEDED ARGUMENTS...
  stage "$1" "$2" "$3" scripts.gpu_check.older scripts.bench_claims --prefills dense \
    --out "$folder/claims.jsonl" "${@:4}"
}

check versions 40
[ $? -ne 2 ] || exit 2
CUDA_LAUNCH_BLOCKING=1 check operations 100
check answers 90
if [ -n "$dry" ]; then
  bench decode 60 bench_decode --lengths 512 --operations append_entries move_entries
  bench kernels 60 bench_kernels --lengths 512 --operations pooling tova_score
  check sweep 60
  tests tests/kernels/test_append_entries.py
  claims claims_32k 60 10 --times --lengths 96 --budget 24 --tokens 2 --runs 1
else
  bench decode 60 bench_decode --lengths 1024 32768
  bench kernels 90 bench_kernels --lengths 4096 32768
  check sweep 100
  tests tests/kernels
  stage prefill 90 60 scripts.gpu_check.older scripts.bench_prefill --lengths 8192 32768 --layers 2
  claims claims_32k 60 30 --lengths 32768 --runs 1
  claims claims_128k 300 150 --lengths 131072 --runs 1
fi
exit $failed
