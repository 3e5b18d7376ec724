#!/usr/bin/env bash
# Asterisk's voice prompts: fetch the Debian packages (not installed, no root needed), check, split, write shards.
# Two hours of speech in five languages in data/asterisk; about a minute. What is done is not done again.
#
#   bash egs/asterisk/prepare.sh
#   bash egs/asterisk/prepare.sh 'corpus.languages=[en,it]' data_dir=data/en_it     other options: omniaudio prepare --help
set -euo pipefail

# shellcheck source=tools/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/recipe.sh"
prepare_corpus asterisk "$@"
