#!/usr/bin/env bash
# Sets up everything on a fresh Debian 12 machine and quantizes a model: installs what is missing, builds, starts
# sinqd on loopback, submits SOURCE as a job, waits for it, and says where the result is.
# usage: deploy/quickstart.sh [--cuda] [SOURCE]
#   --cuda  build with the CUDA backend; where there is no CUDA toolkit, its compiler is installed from PyPI into build/
#   SOURCE  a model directory (config.json and safetensors) or one .safetensors file;
#           default: the sample model in tests/data/tiny-llama
# Running it again is quick and harmless: what is there already is used again.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$repo/build/quickstart
bin=$repo/build/release/bin
listen=127.0.0.1:7461

say() { printf '%s\n' "$*"; }
fail() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }

usage() { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

cuda=()

resolve_source() {
  if [ "${1-}" = --cuda ]; then
    cuda=(-DSINQ_CUDA=ON)
    shift
  fi
  case ${1-} in
    -h | --help) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
  esac
  [ $# -le 1 ] || { usage >&2; exit 2; }
  local given=${1-$repo/tests/data/tiny-llama}
  [ -e "$given" ] || fail "SOURCE $given does not exist; give a model directory or a .safetensors file."
  source_path=$(realpath "$given")
  source_root=$(dirname "$source_path")
}

# The same name for the same source, so that a second run finds the first one's result; another source that happens
# to have this name gets a number behind it.
choose_output() {
  mkdir -p "$work/out" "$work/data"
  local name
  name=$(basename "$source_path" .safetensors)-int4
  local note=$work/out/.$name.source
  if [ -e "$note" ] && [ "$(cat "$note")" != "$source_path" ]; then
    name=$name-$(printf '%s' "$source_path" | cksum | cut -d ' ' -f 1)
    note=$work/out/.$name.source
  fi
  printf '%s\n' "$source_path" >"$note"
  output=$work/out/$name
  request_file=$work/out/.$name.request
  job_file=$work/out/.$name.job
}

install_cuda_toolkit() {
  [ ${#cuda[@]} -gt 0 ] || return 0
  if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then return 0; fi
  local toolkit=$repo/build/cuda-toolkit list=$repo/deploy/cuda_wheels.txt
  cmp -s "$list" "$toolkit/installed" && return
  "$repo/deploy/install_packages.sh" "$repo/deploy/packages_cuda.txt"
  say "Installing the CUDA compiler into build/cuda-toolkit (about 1 GB) ..."
  mkdir -p "$work"
  if ! { python3 -m venv "$toolkit" &&
         "$toolkit/bin/pip" install --disable-pip-version-check -r "$list"; } >"$work/cuda-toolkit.log" 2>&1; then
    tail -n 20 "$work/cuda-toolkit.log" >&2
    fail "installing the CUDA compiler failed; the whole log is $work/cuda-toolkit.log."
  fi
  cp "$list" "$toolkit/installed"
}

build() {
  say "Building sinqd and sinqctl (the first time takes some minutes) ..."
  local log=$work/build.log tests=()
  # Tests stay as they are in a tree that is configured already; a new tree needs no test packages.
  [ -e "$repo/build/release/CMakeCache.txt" ] || tests=(-DSINQ_TESTS=OFF)
  # The tests build device code for one architecture only; what people run has it for all of them.
  if ! (cd "$repo" && cmake --preset release -USINQ_CUDA_ARCHITECTURES "${tests[@]}" "${cuda[@]}" &&
        cmake --build --preset release --target sinqd sinqctl -j "$("$repo/deploy/build_jobs.sh")") >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    fail "the build failed; the whole log is $log."
  fi
}

server_pid() {
  [ -s "$work/sinqd.pid" ] || return 1
  local pid
  pid=$(cat "$work/sinqd.pid")
  # The link ends with " (deleted)" when the binary was built anew: such a server is replaced.
  case $(readlink "/proc/$pid/exe" 2>/dev/null) in
    "$bin"/sinqd*) echo "$pid" ;;
    *) return 1 ;;
  esac
}

server_is_usable() {
  local pid
  pid=$(server_pid) || return 1
  [ "$(readlink "/proc/$pid/exe")" = "$bin/sinqd" ] && grep -qxF -- "$source_root" "$work/roots" && is_ready
}

is_ready() { "$bin/sinqctl" --server "$(cat "$work/address")" --timeout 5 capabilities >/dev/null 2>&1; }

stop_server() {
  local pid
  pid=$(server_pid) || return 0
  say "Restarting sinqd (process $pid) with the new settings; a running job is continued ..."
  kill -TERM "$pid"
  for _ in $(seq 300); do
    [ -e "/proc/$pid" ] || return 0
    sleep 0.1
  done
  fail "sinqd (process $pid) did not stop within 30 s; stop it and run this again."
}

port_is_taken() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }

free_address() {
  local port
  for port in $(seq "$1" $(($1 + 20))); do
    port_is_taken "127.0.0.1:$port" || { echo "127.0.0.1:$port"; return; }
  done
  fail "no free port between $1 and $(($1 + 20))."
}

start_server() {
  if server_is_usable; then
    say "sinqd is running already (process $(server_pid), $(cat "$work/address"))."
    return
  fi
  stop_server
  touch "$work/roots"
  printf '%s\n' "$repo" "$work/out" "$source_root" | cat "$work/roots" - | sort -u >"$work/roots.new"
  mv "$work/roots.new" "$work/roots"
  local args=() root
  while read -r root; do
    [ -d "$root" ] && args+=(--allow-root "$root")
  done <"$work/roots"
  listen=$(free_address "${listen##*:}")
  local metrics
  metrics=$(free_address $((${listen##*:} + 1)))
  nohup "$bin/sinqd" --listen "$listen" --metrics-listen "$metrics" --data-dir "$work/data" "${args[@]}" \
    >"$work/sinqd.log" 2>&1 </dev/null &
  echo $! >"$work/sinqd.pid"
  echo "$listen" >"$work/address"
  for _ in $(seq 100); do
    if is_ready; then
      say "Started sinqd (process $(cat "$work/sinqd.pid"), $listen, log $work/sinqd.log)."
      return
    fi
    server_pid >/dev/null || break
    sleep 0.1
  done
  tail -n 20 "$work/sinqd.log" >&2
  fail "sinqd did not start; the lines above are from $work/sinqd.log."
}

# An interrupted run leaves its request id behind: submitting with it again joins the same job.
submit() {
  [ -s "$request_file" ] || echo "quickstart-$(date +%s)-$$" >"$request_file"
  say "Quantizing $source_path (4 bits, groups of 64) ..."
  local code=0
  "$bin/sinqctl" submit "$source_path" --output "$output" --request-id "$(cat "$request_file")" --wait \
    -o json >"$job_file" || code=$?
  [ $code -eq 130 ] || [ $code -eq 5 ] || [ $code -eq 6 ] || rm -f "$request_file"
  [ $code -eq 0 ] || exit $code
}

effective_bits() {
  cat "$job_file" "$output"/*manifest*.json 2>/dev/null | grep -o '"effective_bits" *: *[0-9.]*' |
    awk '{value = $NF + 0} value > 0 {printf "%.2f", value; exit}'
}

tell_result() {
  local shown=${output#"$PWD"/}
  say ""
  say "Result:          $output"
  say "Size:            $(du -sh --apparent-size "$output" | cut -f 1) (source: $(
    du -shL --apparent-size "$source_path" | cut -f 1))"
  say "Effective bits:  $(effective_bits) per quantized weight, scales included"
  say ""
  say "How to go on:"
  say "  export SINQ_SERVER=$SINQ_SERVER PATH=$bin:\$PATH"
  say "  sinqctl verify $shown                       # digests of every file"
  say "  sinqctl submit MODEL_DIR --output NEW_DIR --wait    # your own model, beneath an allowed root"
  say "  sinqctl --help; sinqctl capabilities; sinqctl list"
  if [ -e "$output/config.json" ]; then
    say "  vllm serve $output      # or any engine that reads compressed-tensors"
    say "  python: transformers.AutoModelForCausalLM.from_pretrained('$output')    # with pip's compressed-tensors"
  fi
  say "  kill $(cat "$work/sinqd.pid")                          # stops the server; jobs are kept"
}

resolve_source "$@"
choose_output
"$repo/deploy/install_packages.sh" "$repo/deploy/packages.txt"
install_cuda_toolkit
build
start_server
SINQ_SERVER=$(cat "$work/address")
export SINQ_SERVER
if [ -e "$output" ]; then
  say "The result is there already; verifying it."
  "$bin/sinqctl" verify "$output" ||
    fail "the result is damaged; remove $output and run this again."
else
  submit
fi
tell_result
