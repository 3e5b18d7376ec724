#!/usr/bin/env bash
# GigaSpeech: check and cut the segments of the recordings, split as the corpus does, write shards.
# Its owner gives it out on request (https://github.com/SpeechColab/GigaSpeech); DIR holds GigaSpeech.json and audio.
# What is done is not done again.
#
#   bash egs/gigaspeech/prepare.sh corpus.root=DIR                                data/gigaspeech: XL, DEV, TEST
#   bash egs/gigaspeech/prepare.sh corpus.root=DIR 'corpus.subsets=[XS,DEV,TEST]'    10 hours
set -euo pipefail

# shellcheck source=tools/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/recipe.sh"
prepare_corpus gigaspeech checks.resample=true checks.downmix=true "$@"
