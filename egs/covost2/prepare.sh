#!/usr/bin/env bash
# CoVoST 2: join Common Voice with its translations, check, split as CoVoST does, write shards.
# Common Voice 4 is fetched by hand (https://commonvoice.mozilla.org/datasets); DIR is its folder of one language.
# What is done is not done again.
#
#   bash egs/covost2/prepare.sh corpus.root=DIR corpus.source=de               data/covost2_de
#   bash egs/covost2/prepare.sh corpus.root=DIR corpus.source=zh-CN    Mandarin
set -euo pipefail

# shellcheck source=tools/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/recipe.sh"
prepare_corpus covost2 checks.resample=true checks.downmix=true "$@"
