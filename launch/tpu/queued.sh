#!/usr/bin/env bash
# One run on a TPU slice that is asked for as a queued resource. Started again it goes on where it stopped.
set -euo pipefail

help() {
  cat <<'HELP'
launch/tpu/queued.sh [FLAG ...]

Asks for a TPU slice, waits for it, copies this checkout to every worker, installs it, and runs
`python -m sora_jax.main --distributed FLAG ...` on all of them, again after a worker was lost, as `python -m
sora_jax.supervise` says. Every step that is done is left out the next time: after a preemption, or a lost connection,
give the same command again.

Environment (default):
  NAME       of the queued resource and of the slice (sora-jax)
  ZONE       (us-east5-b)
  TYPE       accelerator type (v6e-16)
  RUNTIME    software of the TPU VM: v2-alpha-tpuv6e, v2-alpha-tpuv5-lite (v5e), v2-alpha-tpuv5 (v5p) (v2-alpha-tpuv6e)
  OPTIONS    further options of `gcloud compute tpus queued-resources create`, such as --spot or --reserved ()
  SETUP      command that every worker runs first, to mount the file system that holds the workdir ()
             for example: sudo apt-get install -y nfs-common && sudo mkdir -p /runs && sudo mount 10.0.0.2:/runs /runs

The workdir must be a folder that all workers share: --workdir=/runs/base.
When you are done:  gcloud compute tpus queued-resources delete NAME --zone=ZONE --force
HELP
}

if [[ $# -eq 0 ]]; then
  help >&2
  exit 2
elif [[ $1 == --help ]]; then
  help
  exit 0
fi

name=${NAME:-sora-jax} zone=${ZONE:-us-east5-b} type=${TYPE:-v6e-16} runtime=${RUNTIME:-v2-alpha-tpuv6e}
read -ra options <<<"${OPTIONS:-}"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

errors=$(mktemp) archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$errors" "$archive"' EXIT

state() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)' 2>"$errors" && return
  # Before it is asked for there is none, which is no error.
  grep --quiet NOT_FOUND "$errors" || cat "$errors" >&2
}

on_all() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

wait_a_while() {
  echo "$name: ${1:-unknown}; asking again in 30 s"
  sleep 30
}

# Asks for the slice where it neither is there nor comes; $1 is its state.
request() {
  local now=$1
  while [[ $now == SUSPENDING || $now == DELETING ]]; do
    wait_a_while "$now"
    now=$(state)
  done
  case $now in
    SUSPENDED | FAILED) # what is left of a slice that was preempted, or never came
      gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
      ;;&
    '' | SUSPENDED | FAILED)
      gcloud compute tpus queued-resources create "$name" --zone="$zone" --node-id="$name" \
        --accelerator-type="$type" --runtime-version="$runtime" "${options[@]}"
      ;;
  esac
}

request "$(state)"
until now=$(state) && [[ $now == ACTIVE ]]; do
  case $now in
    FAILED)
      echo "the queued resource $name has failed: see gcloud ... describe $name" >&2
      exit 1
      ;;
    SUSPENDING | SUSPENDED | DELETING) request "$now" ;; # preempted before all of it was there
    *) wait_a_while "$now" ;;
  esac
done

git ls-files -z | tar --null --files-from=- --create --gzip --file="$archive"
gcloud compute tpus tpu-vm scp "$archive" "$name:sora_jax.tar.gz" --zone="$zone" --worker=all

# The Python of TPU VMs is older than this project's; uv brings one.
on_all "set -eu
${SETUP:-true}
rm -rf sora_jax && mkdir sora_jax && tar --extract --gzip --file=sora_jax.tar.gz --directory=sora_jax
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python=3.12 venv
python3 -m uv pip install --quiet --python=venv/bin/python --editable './sora_jax[tpu]'"

flags=$(printf ' %q' "$@")
on_all "cd sora_jax && exec ../venv/bin/python -m sora_jax.supervise ../venv/bin/python -m sora_jax.main --distributed$flags"
