#!/usr/bin/env bash
# LibriSpeech: fetch parts from openslr.org, check, split as the corpus does, write shards.
# What is done is not done again.
#
#   bash egs/librispeech/prepare.sh    data/librispeech: train-clean-100, dev-clean, test-clean (7 GB to fetch)
#   bash egs/librispeech/prepare.sh corpus.root=DIR    DIR holds LibriSpeech already; nothing is fetched
#   bash egs/librispeech/prepare.sh 'corpus.parts=[train-clean-100,train-clean-360,train-other-500,dev-clean,test-clean]'    960 hours
set -euo pipefail

# shellcheck source=tools/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/recipe.sh"
prepare_corpus librispeech "$@"
