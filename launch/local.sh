#!/usr/bin/env bash
# Several processes on one machine, each with simulated devices: a rehearsal of a run on a cluster.
set -euo pipefail

if [[ $# -lt 2 || $1 == --help ]]; then
  cat <<'HELP'
launch/local.sh COUNT CONFIG [FLAG ...]

Runs `python -m sora_jax.main --config=CONFIG FLAG ...` as COUNT processes of one run, on CPU. Give --workdir=... among the
flags. Ctrl-C, or SIGTERM, saves and stops them all. What processes other than the first say is marked with their number.
When one was lost, all are started again, as `python -m sora_jax.supervise` says.

Environment:
  DEVICES   simulated devices of each process (1)
  PYTHON    the interpreter (python)
  RESTARTS  most restarts; 0 for none (as many as bring something new)

Ends with 0 when all are done; with 85 when all were stopped and saved; else with the code of the process that failed, or
with 75 when one was killed.
HELP
  [[ ${1:-} == --help ]] && exit 0 || exit 2
fi

count=$1 config=$2
shift 2
[[ $count =~ ^[1-9][0-9]*$ ]] || { echo "COUNT is '$count': give a number of processes; see --help" >&2; exit 2; }
python=${PYTHON:-python}
if [[ -z ${SUPERVISED:-} ]]; then
  SUPERVISED=yes exec "$python" -m sora_jax.supervise ${RESTARTS:+"--restarts=$RESTARTS"} \
    "$(realpath "${BASH_SOURCE[0]}")" "$count" "$config" "$@"
fi
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"

pids=()
for ((id = 0; id < count; id++)); do
  command=("$python" -m sora_jax.main "--config=$config" "$@"
    "--coordinator=127.0.0.1:$port" "--process_count=$count" "--process_index=$id")
  if ((id == 0)); then
    "${command[@]}" &
  else
    "${command[@]}" > >(sed -u "s/^/[$id] /") 2> >(sed -u "s/^/[$id] /" >&2) &
  fi
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM

# A failure of a process's own says more than that it lost another, and that says more than that it was stopped.
rank() {
  case $1 in
    0) echo 0 ;;
    85) echo 1 ;;
    75) echo 2 ;;
    *) echo 3 ;;
  esac
}

result=0
for pid in "${pids[@]}"; do
  code=0
  while :; do
    code=0
    wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || break # a signal to this script ends `wait` before the process has ended
  done
  case $code in
    130 | 143) code=85 ;; # stopped before anything had begun
    134 | 135 | 137 | 139) code=75 ;;
  esac
  if (($(rank "$code") > $(rank "$result"))); then
    result=$code
  fi
done
exit "$result"
