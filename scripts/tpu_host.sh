#!/usr/bin/env bash
# What scripts/tpu_vm.sh does on each host of a TPU machine, from the checkout there:
#   scripts/tpu_host.sh setup BUCKET | run FLAGS_OF_RUN_PY... | stop
# A run writes ~/run.log, its process ~/run.pid, and when it has ended its code ~/run.code.
set -euo pipefail
cd "$(dirname "$0")/.."

running() {
  [ -e ~/run.pid ] && kill -0 "$(cat ~/run.pid)" 2>/dev/null
}

case ${1:-} in
  setup)
    # The machine's Ubuntu has Python 3.10; uv brings a newer one.
    python3 -m pip install --quiet --user uv
    ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 ~/venv
    ~/.local/bin/uv pip install --quiet --python ~/venv/bin/python '.[tpu]'
    if ! command -v gcsfuse >/dev/null; then
      source=https://packages.cloud.google.com/apt
      key=/usr/share/keyrings/cloud.google.asc
      curl -fsSL "$source/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
      echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      sudo apt-get -qq update
      sudo apt-get -qq install gcsfuse
    fi
    sudo mkdir -p /mnt/bucket
    sudo chown "$(id -u)" /mnt/bucket
    # A checkpoint is complete when its folder is renamed, which gcsfuse refuses in a flat bucket unless told.
    mountpoint -q /mnt/bucket || gcsfuse --implicit-dirs --rename-dir-limit=100000 "$2" /mnt/bucket
    ;;
  run)
    if running; then
      echo "error: a run is going on here: stop it first" >&2
      exit 2
    fi
    rm -f ~/run.code
    # In a session of its own, so that it outlives the connection.
    setsid "$0" stay "${@:2}" >>~/run.log 2>&1 </dev/null &
    ;;
  stay)
    echo $$ >~/run.pid
    code=0
    trap 'kill -s TERM $!' TERM
    scripts/keep_running.sh ~/venv/bin/python run.py "${@:2}" &
    wait $! || code=$?
    wait $! || code=$? # the first may have been ended by SIGTERM
    echo "$code" >~/run.code
    ;;
  stop)
    running && kill "$(cat ~/run.pid)"
    ;;
  *)
    echo "error: '${1:-}' is unknown: choose from setup, run, stop" >&2
    exit 2
    ;;
esac
