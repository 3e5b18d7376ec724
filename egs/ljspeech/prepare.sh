#!/usr/bin/env bash
# LJSpeech: fetch, check, split by text, write shards.
# What is done is not done again.
#
#   bash egs/ljspeech/prepare.sh    data/ljspeech (2.6 GB to fetch)
#   bash egs/ljspeech/prepare.sh corpus.root=DIR    DIR holds LJSpeech-1.1 already; nothing is fetched
#   bash egs/ljspeech/prepare.sh checks.sample_rate_hz=22050    keep the full band, for flow and vocoder
set -euo pipefail

# shellcheck source=tools/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/recipe.sh"
prepare_corpus ljspeech "$@"
