#!/usr/bin/env bash
# Asterisk's voice prompts: fetch the Debian packages (not installed, no root needed), check, split, write shards.
# Two hours of speech in five languages in data/asterisk; about a minute. What is done is not done again.
#
#   bash egs/asterisk/prepare.sh
#   bash egs/asterisk/prepare.sh 'corpus.languages=[en,it]' data_dir=data/en_it     other options: omniaudio prepare --help
set -euo pipefail

# shellcheck source=tools/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/recipe.sh"
# shellcheck disable=SC2034  # read by find_omniaudio
dry_run=false
find_omniaudio
cd "$root"
omniaudio prepare corpus=asterisk "$@"
