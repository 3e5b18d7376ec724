#!/usr/bin/env bash
# Every bench in turn, into tools/bench/RESULTS.md. Nothing else should run on the machine.
set -euo pipefail

cd "$(dirname "$0")/../.."
python=$(bash tools/setup_env.sh)
results=tools/bench/RESULTS.md
rows=$(for row in tools/bench/row*.py; do "$python" "$row" 2> /dev/null; done)
{
  echo "# Benches"
  echo
  echo "\`bash tools/bench/all.sh\`, $(date -u +%F), commit $(git describe --always --dirty), $(grep -m 1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $("$python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)')."
  echo "Process CPU time, medians of five pairs; the ratio is the peer's time over ours."
  echo
  echo "| what | ours | peer | ratio | target | limit | threads |"
  echo "| --- | --- | --- | --- | --- | --- | --- |"
  echo "$rows"
} > "$results"
cat "$results"
