# shellcheck shell=bash disable=SC2154  # option() sets the variables
# What every run.sh shares: options, stages, running or only printing commands. A recipe does
#
#   . tools/recipe.sh
#   option data asterisk            # --data NAME, default asterisk; then $data
#   stages -1 12                    # the numbers that --stage and --stop_stage may have
#   parse_options "$@"              # also --dry_run true: print the commands, run none; --help: the header of run.sh
#   if stage 1 "Train the text LLM"; then run omniaudio train ...; fi
#
# A recipe may define check_options, which says in one line (usage_error) what cannot work.
# With ONLY_CHECK_OPTIONS=true in the environment parse_options prints dry_run=true or false and ends there.
# A command that fails ends the recipe with its exit code; a wrong option or stage is one line and exit code 2.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
option_names=()
current_stage=""

log() { echo "$(date '+%F %T') $*"; }
usage_error() { echo "$0: $*" >&2; exit 2; }

# option NAME DEFAULT: declares --NAME and sets $NAME.
option() {
  option_names+=("$1")
  printf -v "$1" '%s' "$2"
}

# stages FIRST LAST: declares --stage and --stop_stage.
stages() {
  first_stage=$1 last_stage=$2
  option stage "$1"
  option stop_stage "$2"
  option dry_run false
}

# The comment at the head of run.sh, without its first line and comment signs.
print_header() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

parse_options() {
  local name value known
  while [[ $# -gt 0 ]]; do
    [[ $1 != --help && $1 != -h ]] || { print_header; exit 0; }
    [[ $1 == --?* ]] || usage_error "'$1' is not an option; options: ${option_names[*]/#/--}"
    name=${1#--}
    if [[ $name == *=* ]]; then
      value=${name#*=} name=${name%%=*}
      shift
    else
      [[ $# -ge 2 ]] || usage_error "option $1 needs a value"
      value=$2
      shift 2
    fi
    known=false
    for option in "${option_names[@]}"; do [[ $option != "${name//-/_}" ]] || known=true; done
    $known || usage_error "unknown option --$name; options: ${option_names[*]/#/--}"
    printf -v "${name//-/_}" '%s' "$value"
  done
  check_stages
  if declare -F check_options > /dev/null && [[ $dry_run == false ]]; then check_options; fi
  [[ ${ONLY_CHECK_OPTIONS:-} != true ]] || { echo "dry_run=$dry_run"; exit 0; }
}

check_stages() {
  local name
  for name in stage stop_stage; do
    if ! [[ ${!name} =~ ^-?[0-9]{1,3}$ ]] || (( ${!name} < first_stage || ${!name} > last_stage )); then
      usage_error "--$name ${!name}: there is no such stage; stages are $first_stage to $last_stage"
    fi
  done
  (( stage <= stop_stage )) || usage_error "--stage $stage comes after --stop_stage $stop_stage: nothing to do"
  [[ $dry_run == true || $dry_run == false ]] || usage_error "--dry_run $dry_run: must be true or false"
}

# stage N TITLE: true if stage N is to run now.
stage() {
  (( $1 >= stage && $1 <= stop_stage )) || return 1
  current_stage=$1
  if [[ $dry_run == true ]]; then echo "# stage $1: $2"; else log "stage $1: $2"; fi
}

# run COMMAND...: runs it, or prints it in a dry run (the output of a dry run is itself a script).
run() {
  if [[ $dry_run == true ]]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
    return
  fi
  local start=$SECONDS code=0
  "$@" || code=$?
  if (( code != 0 )); then
    log "stage $current_stage stopped with exit code $code; to go on from here: the same command with --stage $current_stage" >&2
    exit "$code"
  fi
  log "stage $current_stage done in $((SECONDS - start)) s"
}

# word KEY VALUE: key=value for the command line of omniaudio, quoted where its grammar needs it.
word() {
  if [[ $2 =~ ^[A-Za-z0-9_./:@%+-]*$ ]]; then
    echo "$1=$2"
  else
    echo "$1='${2//\'/\\\'}'"
  fi
}

# prepare_corpus NAME WORDS...: what every egs/NAME/prepare.sh does; further words go to omniaudio prepare.
prepare_corpus() {
  dry_run=false
  find_omniaudio
  cd "$root" || return
  omniaudio prepare "corpus=$1" "${@:2}"
}

# absolute PATH: what exists below the caller's folder as an absolute path; anything else (a hub name) as it is.
absolute() {
  if [[ -e $1 ]]; then echo "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"; else echo "$1"; fi
}

# Puts the omniaudio command of .venv (or of an environment that is already active) in reach.
find_omniaudio() {
  [[ $dry_run == false ]] || return 0
  if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x $root/.venv/bin/omniaudio ]] || ! command -v omniaudio > /dev/null; then
    PATH=$root/.venv/bin:$PATH
  fi
  command -v omniaudio > /dev/null || { echo "$0: no omniaudio command yet; first: bash tools/setup_env.sh" >&2; exit 1; }
}
