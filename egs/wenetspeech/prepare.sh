#!/usr/bin/env bash
# WenetSpeech: check and cut the segments of the recordings, split as the corpus does, write shards.
# Its owner gives it out on request (https://wenet.org.cn/WenetSpeech); DIR holds WenetSpeech.json and audio.
# What is done is not done again.
#
#   bash egs/wenetspeech/prepare.sh corpus.root=DIR                                data/wenetspeech: L, DEV, TEST_NET
#   bash egs/wenetspeech/prepare.sh corpus.root=DIR 'corpus.subsets=[S,DEV,TEST_NET]'    100 hours
set -euo pipefail

# shellcheck source=tools/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/recipe.sh"
prepare_corpus wenetspeech checks.resample=true checks.downmix=true "$@"
