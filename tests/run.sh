#!/usr/bin/env bash
# Installs what the tests need and runs them all: unit, lint, end to end, interop with Python readers.
# usage: tests/run.sh [--fast] [--sanitizers]
#   --fast        only the C++ tests
#   --sanitizers  every C++ test under asan+ubsan, and those without gRPC under tsan (without it: only those that read
#                 hostile bytes or do pointer arithmetic, under asan+ubsan)
# The last line is "N passed, N failed, N skipped"; the exit code is not 0 if anything failed.
set -uo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo" || exit 1
export PYTHONDONTWRITEBYTECODE=1
export TSAN_OPTIONS=suppressions=$repo/tests/tsan.supp
fast=false sanitizers=false
for arg in "$@"; do
  case $arg in
    --fast) fast=true ;;
    --sanitizers) sanitizers=true ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "run.sh: unknown argument $arg (--fast, --sanitizers)" >&2; exit 2 ;;
  esac
done

# What reads hostile bytes or does pointer arithmetic: checked in every run.
hostile_bytes=(base_test source_test sink_test export_test worker_test golden_test)
# C++ tests without gRPC, whose packaged libraries are not instrumented.
no_grpc=(base_test job_test source_test sink_test export_test plan_test worker_test scheduler_test
  golden_test backend_agreement_test quality_test)

passed=0 failed=0 skipped=0
logs=$repo/build/test-logs
mkdir -p "$logs"

add() { passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + ${3:-0})); }
heading() { printf '\n== %s (%d s since the start)\n' "$1" $SECONDS; }
broken() { echo "FAILED: $1"; add 0 1; }

# Runs a suite that ends with "N passed, N failed[, N skipped]" and adds its figures.
suite() {
  local name=$1 log code=0 line
  shift
  heading "$name"
  log=$logs/$(echo "$name" | tr ' /' '__').log
  "$@" 2>&1 | tee "$log"
  code=${PIPESTATUS[0]}
  line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
  if [ -z "$line" ]; then
    broken "$name ended without its summary line (exit code $code)"
    return
  fi
  # shellcheck disable=SC2046
  add $(echo "$line" | grep -oE '[0-9]+')
  case $line in
    *" 0 failed"*) [ "$code" -eq 0 ] || broken "$name: exit code $code" ;;
  esac
}

configure_and_build() {  # PRESET CMAKE_ARG... -- TARGET...
  local preset=$1 args=() log
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do args+=("$1"); shift; done
  [ $# -eq 0 ] || shift
  log=$logs/build-$preset.log
  local targets=()
  [ $# -eq 0 ] || targets=(--target "$@")
  cmake --preset "$preset" "${args[@]}" >"$log" 2>&1 &&
    cmake --build --preset "$preset" "${targets[@]}" -j "$(deploy/build_jobs.sh)" >>"$log" 2>&1 && return
  grep -E -A 12 'error|FAILED' "$log" | head -n 60
  broken "building preset $preset; the whole log is $log"
  return 1
}

attribute() { sed -n "s/.*<testsuite[^>]* $1=\"\([0-9]*\)\".*/\1/p" "$2" | head -n 1; }

run_ctest() {
  heading "unit tests (release)"
  local xml=$logs/ctest.xml code=0
  rm -f "$xml"
  ctest --preset release -j "$(nproc)" --timeout 600 --output-junit "$xml" >"$logs/ctest.log" 2>&1 || code=$?
  local total bad skip
  # A junit file puts the attributes of its one suite on several lines.
  tr '\n\t' '  ' <"$xml" 2>/dev/null | sed 's/<testcase.*//' >"$xml.head"
  total=$(attribute tests "$xml.head") bad=$(attribute failures "$xml.head") skip=$(attribute skipped "$xml.head")
  if [ -z "$total" ] || [ "$total" -eq 0 ]; then
    tail -n 20 "$logs/ctest.log"
    broken "ctest ran no test (exit code $code)"
    return
  fi
  [ "$code" -eq 0 ] || { grep -E 'Failure|\*\*\*|FAILED|Actual|Expected|error' "$logs/ctest.log" | head -n 80; }
  echo "$((total - bad - skip)) passed, $bad failed, $skip skipped"
  add $((total - bad - skip)) "$bad" "$skip"
}

# GoogleTest binaries of a sanitizer build, run whole: one process per binary is much cheaper than one per test.
run_binaries() {  # PRESET BINARY...
  local preset=$1 binary log
  shift
  for binary in "$@"; do
    log=$logs/$preset-$binary.log
    heading "$preset: $binary"
    if timeout 1200 "build/$preset/bin/$binary" --gtest_brief=1 >"$log" 2>&1; then
      local count
      count=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log" | tail -n 1)
      echo "${count:-0} passed"
      add "${count:-0}" 0
    else
      tail -n 40 "$log"
      broken "$binary under $preset"
    fi
  done
}

sanitizer_preset() {  # PRESET TARGET...
  local preset=$1 binaries=() path
  shift
  heading "sanitizer build: $preset"
  configure_and_build "$preset" -DSINQ_TESTS=ON -- "$@" || return
  if [ $# -gt 0 ]; then
    binaries=("$@")
  else
    for path in "build/$preset"/bin/*_test; do
      [ -x "$path" ] && binaries+=("$(basename "$path")")
    done
  fi
  run_binaries "$preset" "${binaries[@]}"
}

finish() {
  printf '\n%d s in all\n%d passed, %d failed, %d skipped\n' $SECONDS $passed $failed $skipped
  [ $failed -eq 0 ] && [ $passed -gt 0 ]
  exit
}

heading "packages"
if ! deploy/install_packages.sh deploy/packages.txt tests/packages.txt; then
  broken "installing Debian packages"
  finish
fi

heading "build (release)"
# Where there is an nvcc, one architecture shows that the device code compiles and links; quickstart.sh builds them all.
configure_and_build release -DSINQ_TESTS=ON -DSINQ_CUDA_ARCHITECTURES=90 && run_ctest
$fast && finish

suite "lint" python3 tests/lint/lint.py
if [ -x build/release/bin/sinqd ] && [ -x build/release/bin/sinqctl ]; then
  suite "end to end" python3 tests/e2e/run.py
  heading "python environment"
  if tests/interop/make_env.sh; then
    suite "interop" build/venv/bin/python tests/interop/run.py
  else
    broken "the Python environment of the interop tests"
  fi
else
  broken "sinqd and sinqctl were not built: no end-to-end and no interop tests"
fi
heading "build (clang, with thread-safety analysis)"
# Only for what clang has to say, which does not depend on how it optimizes.
configure_and_build clang -DSINQ_TESTS=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O0 -DSINQ_INNER_LOOPS_OPTION=-O0 -- \
  sinqd sinqctl sinq_cuda_host && add 1 0 && echo "1 passed"
if $sanitizers; then
  sanitizer_preset asan
  # With gRPC inside every hand-over in it would look like a race.
  sanitizer_preset tsan "${no_grpc[@]}"
else
  # The CUDA code on the CPU is left to --sanitizers: fibers are slow under it, and its memory is watched by the shim
  # and the fake runtime in every run.
  sanitizer_preset asan "${hostile_bytes[@]}"
fi
finish
