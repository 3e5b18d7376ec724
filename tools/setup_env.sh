#!/usr/bin/env bash
# Makes the Python environment .venv of this project, once; a second call finds it ready in well under a second.
#
#   bash tools/setup_env.sh [EXTRA...]     extras of setup.py: dev, wandb, torchaudio, metrics
#
# Prints the environment's python on standard output, everything else on standard error; the log of pip is
# .venv/setup.log. Versions: tools/constraints.txt. Without an NVIDIA driver it takes the CPU build of torch
# (200 MB; the CUDA build is several GB); a torch that is already in .venv is kept, whatever its version.
#   PYTHON=python3.12 bash tools/setup_env.sh     chooses the interpreter
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
constraints=$root/tools/constraints.txt
log_file=$venv/setup.log
cpu_index=https://download.pytorch.org/whl/cpu

say() { echo "setup_env: $*" >&2; }
fail() { say "$*"; exit 1; }

# The first interpreter that is new enough; prints its name.
find_python() {
  local name
  for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
      echo "$name"
      return
    fi
    [[ -z ${PYTHON:-} ]] || break
  done
  fail "Python >= 3.10 is needed, found: $("${PYTHON:-python3}" --version 2>&1 | head -n 1). Install one, or name it: PYTHON=python3.12 bash $0"
}

# What the environment must agree with: dependencies, pins, and where it stands (scripts hold absolute paths).
wanted_hash() {
  { echo "$root"; cat "$root/setup.py" "$constraints"; } | cksum | tr ' ' '-'
}

make_venv() {
  local python free_kb
  python=$(find_python) || exit 1
  "$python" -c 'import ensurepip, venv' 2> /dev/null ||
    fail "this Python cannot make environments; as root: apt-get install python3-venv (then run this again)"
  free_kb=$(df -Pk "$root" | awk 'NR == 2 { print $4 }')
  (( free_kb > 3000000 )) || fail "needs 3 GB in $root, $((free_kb / 1000)) MB are free"
  say "making $venv with $("$python" --version)"
  "$python" -m venv "$venv" >> "$log_file" 2>&1 || fail "python -m venv failed: $(tail -n 1 "$log_file")"
}

# pip_install WORDS...: runs pip with its output in the log and one moving line for the user.
pip_install() {
  local start=$SECONDS pid what
  "$venv/bin/python" -m pip install --progress-bar off "$@" >> "$log_file" 2>&1 &
  pid=$!
  trap 'kill "$pid" 2> /dev/null; echo >&2; fail "stopped; the same command goes on from here"' INT TERM
  while kill -0 "$pid" 2> /dev/null; do
    if [[ -t 2 ]]; then
      what=$(grep -aE '^(Collecting|Downloading|Installing|Building|Processing)' "$log_file" | tail -n 1 | cut -c 1-70 || true)
      printf '\r\033[Ksetup_env: %3d s  %s' "$((SECONDS - start))" "$what" >&2
    fi
    sleep 0.5
  done
  trap - INT TERM
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
  if ! wait "$pid"; then
    tail -n 15 "$log_file" >&2
    fail "pip could not install it (all of its output: $log_file). Check the network and the disk, then run this again: it goes on from here"
  fi
}

has_gpu() { [[ -e /proc/driver/nvidia/version ]] || { command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1; }; }

can_reach() {
  timeout 6 "$venv/bin/python" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)' "$1/" 2> /dev/null
}

# Of the package, as pip knows it: torch.__version__ of PyPI's CUDA build ends in +cu130, its package does not.
torch_version() {
  "$venv/bin/python" -c 'import importlib.metadata, torch; print(importlib.metadata.version("torch"))' 2> /dev/null || true
}

# torch first, so that what follows neither replaces it nor takes another build.
install_torch() {
  local pinned=$venv/constraints.txt
  if [[ -z $(torch_version) ]]; then
    if has_gpu; then
      say "installing torch (NVIDIA driver found: the default build)"
      pip_install -c "$constraints" torch
    elif can_reach "$cpu_index"; then
      say "installing torch (no NVIDIA driver: the CPU build)"
      pip_install -c "$constraints" --index-url "$cpu_index" torch
    else
      say "installing torch (no NVIDIA driver, and PyTorch's CPU index is out of reach: what pip finds, maybe the CUDA build of several GB)"
      pip_install -c "$constraints" torch
    fi
  fi
  grep -v '^torch==' "$constraints" > "$pinned"
  echo "torch==$(torch_version)" >> "$pinned"
}

main() {
  local stamp=$venv/.ready have="" hash extra extras=() missing=()
  hash=$(wanted_hash)
  [[ ! -e $stamp ]] || have=$(cat "$stamp")
  for extra in "$@"; do
    [[ " ${have#* } " == *" $extra "* ]] || missing+=("$extra")
  done
  if [[ ${have%% *} == "$hash" && ${#missing[@]} -eq 0 ]]; then
    echo "$venv/bin/python"
    return
  fi

  mkdir -p "$venv" 2> /dev/null || fail "no permission to write $venv"
  [[ -w $venv ]] || fail "no permission to write $venv"
  if command -v flock > /dev/null; then  # two commands started at once make one environment
    exec 9> "$venv/.lock"
    flock 9
    [[ ! -e $stamp || $(cat "$stamp") == "$have" ]] || { exec 9>&-; main "$@"; return; }
  fi
  local begin=$SECONDS
  : > "$log_file"
  "$venv/bin/python" -m pip --version > /dev/null 2>&1 || make_venv
  install_torch
  read -r -a extras <<< "${have#"${have%% *}"} ${missing[*]-}"
  say "installing the rest (2 to 4 minutes the first time)"
  local list
  list=$(IFS=,; echo "${extras[*]-}")
  pip_install -c "$venv/constraints.txt" -e "$root${list:+[$list]}"
  # They name torchaudio, which our use of them leaves alone: one that does not load beside torch's CPU build breaks others.
  [[ ",$list," != *,metrics,* ]] || pip_install -c "$venv/constraints.txt" --no-deps distillmos xls-r-sqa
  echo "$hash ${extras[*]-}" > "$stamp"
  say "ready after $((SECONDS - begin)) s: $venv"
  echo "$venv/bin/python"
}

main "$@"
