#!/usr/bin/env bash
# From recorded speech to a model that listens and talks (arXiv:2502.17239): every stage is one omniaudio command.
#
#   bash recipes/baichuan_audio/run.sh [--stage N] [--stop_stage M] [--OPTION VALUE]...
#
# Stages: -1 fetch   0 shards   1 text LLM   2 tokenizer   3 codes   4 audio LLM, stage 1   5 audio LLM, stage 2
#         6 SFT   7 flow matching   8 vocoder   9 export   10 generate   11 evaluate   12 report
# What is done is skipped, what was stopped goes on: run the same command again.
#
#   --data asterisk      asterisk | fotaq | asterisk_fotaq     (conf/corpus); or data/NAME, made by omniaudio build or join
#   --audio_dir DIR      your own folder of wav files with transcripts, instead of --data
#   --scale mini         tiny | mini | mini_long | whisper_base | full   (conf/scale)
#   --trainer cpu        cpu | gpu                             (conf/trainer)
#   --strategy single    single | ddp | zero1 | zero2 | zero3; --devices 1
#   --tag NAME           results go to exp/NAME; default baichuan_audio_<data>_<scale>
#   --encoder NAME       pretrained Whisper encoder: hub name or folder; default: small, from scratch (whisper_base: its own, from the hub)
#   --backbone NAME      pretrained text LLM, used as it is: hub name or folder; default: as for --encoder
#   --finetune_vocoder false   true: stage 8 goes on with the vocoder on the mels of tokenizer and flow, and the export takes that one
#   --asr_judge NAME     recogniser that scores the speech: hub name or folder; default: no such rows
#   --overrides "K=V .." more config words for the training stages (1, 2, 4 to 8)
#   --prepare_overrides "K=V .."  more config words for stages -1 and 0 (corpus.language=de checks.resample=true ...)
#   --dry_run true       print the commands only
#
# This script holds no hyperparameter: those are in conf/experiment/baichuan_audio and conf/scale.
set -euo pipefail

# shellcheck source=tools/recipe.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/recipe.sh"
option data asterisk
option audio_dir ""
option scale mini
option trainer cpu
option strategy single
option devices 1
option tag ""
option encoder ""
option backbone ""
option finetune_vocoder false
option asr_judge ""
option overrides ""
option prepare_overrides ""
stages -1 12

# shellcheck disable=SC2154  # option() sets them
is_built() {
  [[ ! -e $root/conf/corpus/$data.yaml && ( -e $root/data/$data/build.json || -e $root/data/$data/joined.json ) ]]
}

# shellcheck disable=SC2154
check_options() {
  local slot choices
  for slot in data scale trainer; do
    [[ $slot != data ]] || ! is_built || continue
    choices=("$root/conf/${slot/data/corpus}"/*.yaml)
    choices=("${choices[@]##*/}")
    [[ $slot != trainer ]] || choices=(cpu.yaml gpu.yaml) # trainer=slurm submits one training and does not wait for it
    [[ " ${choices[*]} " == *" ${!slot}.yaml "* ]] || usage_error "--$slot ${!slot}: can be ${choices[*]%.yaml}"
  done
  [[ $finetune_vocoder == true || $finetune_vocoder == false ]] ||
    usage_error "--finetune_vocoder $finetune_vocoder: must be true or false"
  if [[ -n $audio_dir ]]; then
    [[ -d $audio_dir ]] || usage_error "--audio_dir $audio_dir: there is no such folder"
  elif ! is_built && [[ $data != folder && $stage -le -1 && ! -d $root/data/$data/raw && $prepare_overrides != *corpus.* ]]; then
    command -v apt-get > /dev/null ||
      usage_error "the recordings of $data are Debian packages, and this system has no apt; give your own: --audio_dir FOLDER"
  fi
}

parse_options "$@"

# shellcheck disable=SC2154  # option() sets them
{
  corpus=("corpus=$data")
  if [[ -n $audio_dir ]]; then
    data=folder
    corpus=(corpus=folder "$(word corpus.folder "$(absolute "$audio_dir")")")
  fi
  tag=${tag:-baichuan_audio_${data}_$scale}
  where=("scale=$scale" "data=$data" "tag=$tag")
  how=("trainer=$trainer" "strategy=$strategy" "devices=$devices")
  vocoder=()
  [[ $finetune_vocoder == false ]] || vocoder=("parts.vocoder=exp/$tag/vocoder_finetune/final/vocoder")
  device=()
  [[ $trainer == cpu ]] || device=(device=cuda)
  read -r -a more <<< "$overrides"
  read -r -a prepare_more <<< "$prepare_overrides"
  encoder=${encoder:+$(word encoder.pretrained "$(absolute "$encoder")")}
  backbone=${backbone:+$(word backbone.pretrained "$(absolute "$backbone")")}
  asr_judge=${asr_judge:+$(word asr_judge "$(absolute "$asr_judge")")}
}
find_omniaudio
cd "$root"

prepare() {
  if [[ -z $audio_dir ]] && is_built; then
    [[ $dry_run == true ]] || log "data/$data is there already"
    return
  fi
  run omniaudio prepare "${corpus[@]}" "step=$1" "record_dir=exp/$tag/$1" ${prepare_more[@]+"${prepare_more[@]}"}
}
train() { run omniaudio train "experiment=baichuan_audio/$1" "${where[@]}" "${how[@]}" "${@:2}" ${more[@]+"${more[@]}"}; }
verb() { run omniaudio "$1" system=baichuan_audio "${where[@]}" "${@:2}"; }

if stage -1 "Fetch $data"; then prepare fetch; fi
if stage 0 "Check, split, and write shards of $data"; then prepare shards; fi
if stage 1 "Train the text LLM and its tokenizer"; then train text_lm ${backbone:+"$backbone" schedule.text_lm.max_steps=0}; fi
if stage 2 "Train the speech tokenizer: waveform -> codes -> mel"; then train tokenizer ${encoder:+"$encoder"} ${backbone:+"$backbone"}; fi
if stage 3 "Write the codes of all speech, once"; then verb extract ${device[@]+"${device[@]}"}; fi
if stage 4 "Train the audio embeddings and the audio head"; then train pretrain_stage1 ${backbone:+"$backbone"}; fi
if stage 5 "Train the LLM but its text embedding and head"; then train pretrain_stage2 ${backbone:+"$backbone"}; fi
if stage 6 "Train on spoken instructions"; then train sft ${backbone:+"$backbone"}; fi
if stage 7 "Train flow matching: hidden states -> mel"; then train flow; fi
# ZeRO takes one optimizer, a vocoder has two: it takes DDP, which has nothing to offload.
if stage 8 "Train the vocoder: mel -> waveform"; then
  more=(${more[@]+"${more[@]/#offload=true/offload=false}"})
  train vocoder "strategy=${strategy/zero?/ddp}"
  [[ $finetune_vocoder == false ]] || train vocoder_finetune "strategy=${strategy/zero?/ddp}"
fi
if stage 9 "Export one folder that loads alone"; then verb export ${vocoder[@]+"${vocoder[@]}"}; fi
if stage 10 "Let the export speak, listen, and answer"; then verb generate ${device[@]+"${device[@]}"}; fi
if stage 11 "Measure on held-out speech, and how the sound came about"; then
  verb evaluate ${device[@]+"${device[@]}"} ${asr_judge:+"$asr_judge"}
  verb evaluate task=curve ${device[@]+"${device[@]}"} ${asr_judge:+"$asr_judge"}
fi
if stage 12 "Write the report"; then
  verb report
  [[ $dry_run == true ]] || log "open exp/$tag/report/index.html"
fi
