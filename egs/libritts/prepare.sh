#!/usr/bin/env bash
# LibriTTS: fetch parts from openslr.org, check, split as the corpus does, write shards.
# What is done is not done again.
#
#   bash egs/libritts/prepare.sh    data/libritts: train-clean-100, dev-clean, test-clean (10 GB to fetch)
#   bash egs/libritts/prepare.sh corpus.root=DIR    DIR holds LibriTTS already; nothing is fetched
#   bash egs/libritts/prepare.sh checks.sample_rate_hz=24000    keep the full band, for flow and vocoder
set -euo pipefail

# shellcheck source=tools/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/recipe.sh"
prepare_corpus libritts "$@"
