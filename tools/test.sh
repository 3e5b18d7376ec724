#!/usr/bin/env bash
# All checks: environment, format, lint, types, shell, spelling, rules of the repository, tests. What CI runs.
#
#   bash tools/test.sh          everything that needs no GPU
#   bash tools/test.sh --fast   without the tests marked slow
#
# Every step runs even after one has failed; the last line names those that failed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
marks="not gpu"
case "${1:-}" in
  "") ;;
  --fast) marks="not gpu and not slow" ;;
  -h | --help) awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; exit 0 ;;
  *) echo "tools/test.sh: unknown option $1; it takes --fast or nothing" >&2; exit 2 ;;
esac

workers=$(nproc 2> /dev/null || getconf _NPROCESSORS_ONLN)
(( workers > 8 )) && workers=8  # each holds a torch of its own
failed=()
step() {
  local name=$1 start=$SECONDS code=0
  shift
  echo "== $name"
  "$@" || code=$?
  echo "== $name: $([[ $code == 0 ]] && echo ok || echo "FAILED (exit code $code)"), $((SECONDS - start)) s"
  [[ $code == 0 ]] || failed+=("$name")
}

python=$(bash tools/setup_env.sh dev)
# Two packages of the measures are compiled; where that fails, their comparisons are skipped and all else is tested.
if ! { command -v cc > /dev/null && bash tools/setup_env.sh metrics > /dev/null; }; then
  echo "tools/test.sh: the extra [metrics] could not be installed (it needs a C compiler): no comparison with its packages"
fi
PATH=$(dirname "$python"):$PATH
export PATH DS_ACCELERATOR=cpu  # DeepSpeed looks for a GPU otherwise, even where there is none

shell_files() { find .ci/run tools recipes egs -type f \( -name '*.sh' -o -path .ci/run \); }
check_shell() { shell_files | xargs shellcheck -x; }

# pytest, and proof that tests ran: all skipped is a failure too.
run_tests() {
  local output code=0
  output=$(mktemp)
  # numba (of librosa) crashes on a cache that a killed run has left half-written: it gets one of its own.
  NUMBA_CACHE_DIR=$(mktemp -d)
  export NUMBA_CACHE_DIR OMP_NUM_THREADS=1  # a process a core, a thread a process
  python -m pytest -m "$marks" -n "$workers" --dist worksteal 2>&1 | tee "$output" || code=1
  grep -aqE '[0-9]+ passed' "$output" || { echo "no test ran"; code=1; }
  rm -rf "$output" "$NUMBA_CACHE_DIR"
  return "$code"
}

step "format (ruff format)" ruff format --check --quiet .
step "lint (ruff check)" ruff check --quiet .
step "types (mypy)" mypy
step "shell (shellcheck)" check_shell
step "spelling (codespell)" codespell
step "rules (check_repo)" python tools/check_repo.py
step "tests (pytest)" run_tests

if (( ${#failed[@]} )); then
  (IFS=,; echo "FAILED after $SECONDS s: ${failed[*]}")
  exit 1
fi
echo "all checks passed in $SECONDS s"
