#!/usr/bin/env bash
# AISHELL-1: fetch from openslr.org, unpack the speakers, check, split as the corpus does, write shards.
# What is done is not done again.
#
#   bash egs/aishell1/prepare.sh    data/aishell1 (15 GB to fetch)
#   bash egs/aishell1/prepare.sh corpus.root=DIR    DIR holds data_aishell already; nothing is fetched
set -euo pipefail

# shellcheck source=tools/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/recipe.sh"
prepare_corpus aishell1 "$@"
