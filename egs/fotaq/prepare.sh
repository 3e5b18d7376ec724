#!/usr/bin/env bash
# The dialogues of "Flight of the Amazon Queen": fetch the Debian package (not installed, no root needed), take the
# voices out, check, split, write shards. Under three hours of acted English in data/fotaq; about a minute. What is
# done is not done again.
#
#   bash egs/fotaq/prepare.sh
#   bash egs/fotaq/prepare.sh corpus=asterisk_fotaq          together with the prompts, in data/asterisk_fotaq
#   bash egs/fotaq/prepare.sh corpus.bundle=DIR/queen.1c     without apt: the game's own file (talkie version, MP3)
set -euo pipefail

# shellcheck source=tools/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/recipe.sh"
prepare_corpus fotaq "$@"
