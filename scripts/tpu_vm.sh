#!/usr/bin/env bash
# Trains on a TPU machine of Google Cloud: one TPU VM, or all hosts of a slice; the commands are the same.
#
#   export NAME=mine ZONE=us-west4-a TYPE=v5litepod-16 BUCKET=my-bucket
#   scripts/tpu_vm.sh create     # asks for the machine (a queued resource) and waits until it is there
#   scripts/tpu_vm.sh setup      # brings this commit, its packages and the bucket to every host
#   scripts/tpu_vm.sh run --experiment=paris --set data.train=/mnt/bucket/data/paris_records
#   scripts/tpu_vm.sh logs       # of the first host; also: status, stop (saves), delete
#   scripts/tpu_vm.sh watch --experiment=paris --set ...     # all of it: creates what is missing or was taken away, sets
#                                # it up, runs, and ends with the code of the run; the machine is yours to delete
#
# --dry-run as the first word prints the commands and runs none. What follows `run` and `watch` are flags of run.py, to
# which --platform=tpu and --workdir=/mnt/bucket/runs/NAME are added.
#
# NAME     of the machine, of its queued resource and of the run's folder
# ZONE     such as us-west4-a
# TYPE     such as v5litepod-8 (one host), v5litepod-16 (four hosts), v6e-16, v5p-16, v4-16
# BUCKET   mounted as /mnt/bucket on every host
# SPOT     yes (default): cheap, and may be taken away; or no
# VERSION  of the machine's software (default: by TYPE)
# POLL     seconds between two looks at the machine (default: 30)
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

dry=
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  shift
fi
command=${1:-}
[ $# -eq 0 ] || shift

NAME=${NAME:-} ZONE=${ZONE:-} TYPE=${TYPE:-} BUCKET=${BUCKET:-} SPOT=${SPOT:-yes} POLL=${POLL:-30}
for setting in NAME ZONE TYPE BUCKET; do
  [ -n "${!setting}" ] || fail "$setting is not set: export it, as the head of $0 shows"
done
case $TYPE in
  v6e-*) software=v2-alpha-tpuv6e ;;
  v5p-*) software=v2-alpha-tpuv5 ;;
  v5litepod-*) software=v2-alpha-tpuv5-lite ;;
  v2-* | v3-* | v4-*) software=tpu-ubuntu2204-base ;;
  *) software= ;;
esac
VERSION=${VERSION:-$software}
[ -n "$VERSION" ] || fail "TYPE=$TYPE is not known here: set VERSION to its software version, too"
case $SPOT in
  yes) spot=(--spot) ;;
  no) spot=() ;;
  *) fail "SPOT=$SPOT is unknown: choose yes or no" ;;
esac

# Runs a command, or prints it as a shell would read it.
do_it() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on() {
  do_it gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

# ACTIVE when the machine is there, SUSPENDED when it was taken away; empty when there is none, or no answer.
state() {
  do_it gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' || true
}

request() {
  do_it gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$VERSION" "${spot[@]}"
}

wait_for_it() {
  local now=
  [ -z "$dry" ] || return 0
  until [ "$now" = ACTIVE ]; do
    sleep "$POLL"
    now=$(state)
    echo "$NAME: ${now:-no answer}"
    case $now in FAILED | SUSPENDED) fail "$NAME is $now: delete it and create it again" ;; esac
  done
}

# A clone keeps the commit, which config.json then names.
setup() {
  local folder code=0
  folder=$(mktemp -d)
  [ -z "$(git status --porcelain)" ] || echo "note: only what is committed is brought there" >&2
  git bundle create --quiet "$folder/gmsrm.bundle" HEAD
  {
    do_it gcloud compute tpus tpu-vm scp "$folder/gmsrm.bundle" "$NAME:" --zone="$ZONE" --worker=all &&
      on all "rm -rf gmsrm && git clone --quiet gmsrm.bundle gmsrm && gmsrm/scripts/tpu_host.sh setup $BUCKET"
  } || code=$?
  rm -r "$folder"
  return "$code"
}

run() {
  on all "gmsrm/scripts/tpu_host.sh run --platform=tpu --workdir=/mnt/bucket/runs/$NAME$(printf ' %q' "$@")"
}

delete() {
  do_it gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

watch() {
  local now code
  while :; do
    now=$(state)
    case $now in
      ACTIVE)
        # shellcheck disable=SC2088  # the host's home, not this machine's
        code=$(on 0 'cat ~/run.code 2>/dev/null || if [ -e ~/run.pid ]; then echo running; else echo new; fi' || true)
        case $code in
          new | 143) { setup && run "$@"; } || true ;; # 143: its host was told to stop, and yet it is there
          [0-9]*) exit "$code" ;;
        esac
        ;;
      '') request || true ;; # where there was no answer it refuses, as the name is taken
      FAILED | SUSPENDED) delete || true ;;
    esac
    echo "$NAME: ${now:-asked for}"
    sleep "$POLL"
  done
}

case $command in
  create)
    request
    wait_for_it
    ;;
  setup) setup ;;
  run) run "$@" ;;
  logs) on 0 'tail -n 100 -f run.log' ;;
  status) state ;;
  stop) on all 'gmsrm/scripts/tpu_host.sh stop' ;;
  delete) delete ;;
  watch)
    [ -z "$dry" ] || fail "--dry-run prints no watch: it does what create, setup, run and delete print"
    watch "$@"
    ;;
  *) fail "'$command' is unknown: choose from create, setup, run, logs, status, stop, delete, watch" ;;
esac
