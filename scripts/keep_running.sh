#!/usr/bin/env bash
# Runs a command again and again until it is done: for machines that are taken away, and runs whose other hosts die.
#
#   scripts/keep_running.sh python run.py --experiment=paris --workdir=/mnt/bucket/mine ...
#
# Again after code 3 (another process gone), 143 (told to stop, saved) and any signal (134 abort, 137 kill ...).
# Not after 0 (done), 2 (you must change something), 130 (interrupted) or anything else: that code becomes its own.
# SIGTERM, SIGINT and SIGHUP (as SIGTERM) are passed on; then it ends with the command's code, without another start.
#
# TRIES (default 5): starts in a row that leave no newer checkpoint under the command's --workdir=DIR before it gives up.
# PAUSE (default 5): seconds before a restart, doubled up to 120 while there is no newer checkpoint.
set -um  # m: the command is in a group of its own, so that Ctrl-C reaches it once, and it does not ignore SIGINT
TRIES=${TRIES:-5} PAUSE=${PAUSE:-5}
LONGEST=120  # hosts must meet within five minutes

say() { echo "keep_running: $*" >&2; }

workdir=
for argument; do
  case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
done
if [ -z "$workdir" ]; then
  say "error: the command must name its folder, whose checkpoints tell whether it goes on: add --workdir=DIR"
  exit 2
fi
for number in "$TRIES" "$PAUSE"; do
  case $number in
    '' | *[!0-9]*) say "error: TRIES=$TRIES and PAUSE=$PAUSE must be whole numbers"; exit 2 ;;
  esac
done

child='' signal='' signals=0
pass_on() {
  signal=$1 signals=$((signals + 1))
  [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null
}
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT

# Runs a command and sets `code`, also when signals come in between.
run() {
  "$@" </dev/null &
  child=$!
  [ -z "$signal" ] || kill -s "$signal" "$child" 2>/dev/null  # it came before there was a child
  local before again
  before=$signals
  wait "$child"
  code=$?
  while [ "$before" != "$signals" ]; do  # the signal may have ended the waiting, not the command
    before=$signals
    wait "$child" 2>/dev/null
    again=$?
    [ "$again" = 127 ] || code=$again  # 127: it had ended already
  done
  child=
}

# The newest step of each stage, summed up: it grows whenever a checkpoint is completed.
saved() {
  local total=0 stage step newest
  for stage in "$workdir"/checkpoints/*/; do
    newest=0
    for step in "$stage"*/; do
      step=${step%/} step=${step##*/}
      case $step in
        '' | *[!0-9]*) ;;  # still being written
        *) [ "$step" -le "$newest" ] || newest=$step ;;
      esac
    done
    total=$((total + newest))
  done
  echo "$total"
}

most=$(saved) without=0 pause=$PAUSE
while :; do
  run "$@"
  if [ -n "$signal" ]; then
    exit "$code"
  fi
  if [ "$code" != 3 ] && { [ "$code" -le 128 ] || [ "$code" = 130 ]; }; then
    exit "$code"
  fi
  now=$(saved)
  if [ "$now" -gt "$most" ]; then
    most=$now without=0 pause=$PAUSE
  else
    without=$((without + 1))
  fi
  if [ "$without" -ge "$TRIES" ]; then
    say "ended with code $code; $without starts in a row left no newer checkpoint in $workdir: giving up"
    exit "$code"
  fi
  say "ended with code $code; starting again in $pause s"
  finished=$code
  run sleep "$pause"
  if [ -n "$signal" ]; then
    exit "$finished"
  fi
  pause=$((pause * 2 < LONGEST ? pause * 2 : LONGEST))
done
