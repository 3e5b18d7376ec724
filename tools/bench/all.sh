#!/usr/bin/env bash
# Every bench in turn, into tools/bench/RESULTS.md. Nothing else should run on the machine.
set -euo pipefail

cd "$(dirname "$0")/../.."
python=$(bash tools/setup_env.sh)
peers=.venv/bench-peers  # without their dependencies, which ask for other versions of torch
[[ -d $peers/moshi && -d $peers/encodec && -d $peers/lhotse ]] || "$python" -m pip install -q --no-deps --target "$peers" encodec==0.1.1 moshi==0.2.13 \
  lhotse==1.33.0 intervaltree==3.2.1 cytoolz==1.2.0 toolz==1.2.0 sortedcontainers==2.4.0 tabulate==0.10.0 audioread==3.1.0
export DS_ACCELERATOR=cpu PYTHONPATH=$peers
results=tools/bench/RESULTS.md commit=$(git describe --always --dirty)
rows="" failed=""
for row in tools/bench/row*.py; do
  output=$("$python" "$row" 2>&1) || failed+=" $row"
  rows+=$(grep -E '^\|' <<< "$output" || echo "| $row failed: $(tail -n 1 <<< "$output") |")$'\n'
done
processor=$(grep -m 1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs)
versions=$("$python" -c 'import torch, transformers as t; print(f"torch {torch.__version__}, transformers {t.__version__}")')
cat > "$results" << END
# Benches

\`bash tools/bench/all.sh\`, $(date -u +%F), commit $commit, $processor, $versions.
Process CPU time, medians of five pairs where a row says no other number; the ratio is the peer's time over ours.

| what | ours | peer | ratio | target | limit | threads |
| --- | --- | --- | --- | --- | --- | --- |
$rows
END
cat "$results"
[[ -z $failed ]] || { echo "failed:$failed" >&2; exit 1; }
