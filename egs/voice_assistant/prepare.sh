#!/usr/bin/env bash
# VoiceAssistant-400K: fetch from the Hugging Face hub, take the questions out, check, split by text, write shards.
# What is done is not done again.
#
#   bash egs/voice_assistant/prepare.sh    data/voice_assistant
#   bash egs/voice_assistant/prepare.sh corpus.repository=null corpus.root=DIR    DIR holds the parquet files already
set -euo pipefail

# shellcheck source=tools/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/recipe.sh"
prepare_corpus voice_assistant checks.resample=true checks.downmix=true "$@"
