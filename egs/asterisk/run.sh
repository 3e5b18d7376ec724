#!/usr/bin/env bash
# Everything in one command, on real recorded speech in five languages (Debian's Asterisk prompts, CC-BY-SA):
# makes the environment, fetches the corpus, trains every stage of the chain, and ends with a page to look at
# and listen to: exp/<tag>/report/index.html. Run it again after a stop: it goes on where it was.
#
#   bash egs/asterisk/run.sh                         34 minutes on 2 idle cores
#   bash egs/asterisk/run.sh --scale mini_long       63 minutes, clearer speech
#   bash egs/asterisk/run.sh --audio_dir DIR         your own wav files and transcripts instead (no apt needed)
#
# All options are those of the recipe:
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
recipe=$root/recipes/baichuan_audio/run.sh

case " $* " in
  *" --help "* | *" -h "*) awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0" ;;
  *) # a wrong option is said before anything is installed
    checked=$(ONLY_CHECK_OPTIONS=true bash "$recipe" --data asterisk "$@")
    [[ $checked == dry_run=true ]] || bash "$root/tools/setup_env.sh" > /dev/null
    ;;
esac
bash "$recipe" --data asterisk "$@"
