#!/usr/bin/env bash
# Runs what only a machine with a GPU can show: the device tests, compute-sanitizer over the small ones, the benchmark.
# usage: tests/gpu/run.sh [--bundle DIR]
#   --bundle DIR  copies the binaries, the libraries that they need and this script to DIR instead: DIR/run.sh runs on a
#                 machine that has the driver and nothing else of ours
# Without a device everything is skipped, and that is no failure. SINQ_CUBLAS_DIR: folder of libcublas.so, if it is
# nowhere usual. The last line is "N passed, N failed, N skipped".
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=$here/bin
[ -d "$bin" ] || bin=$(cd "$here/../.." && pwd)/build/release/bin
binaries=(backend_cuda_gpu_test quantize_bench_cuda)
passed=0 failed=0 skipped=0

bundle() {
  local to=$1 binary
  mkdir -p "$to/bin" "$to/lib" || exit 1
  cp "$here/run.sh" "$to/" || exit 1
  for binary in "${binaries[@]}"; do
    cp "$bin/$binary" "$to/bin/" || exit 1
    # With the C library and its loader: the other machine's may be older than what we were linked with.
    ldd "$bin/$binary" | awk '{for (i = 1; i <= NF; ++i) if ($i ~ "^/") print $i}' | sort -u |
      xargs -I{} cp -L {} "$to/lib/" || exit 1
  done
  echo "$to: $(du -sh "$to" | cut -f 1); run $to/run.sh on the machine with the GPU"
}

# The command line that starts a binary: with the libraries beside it where it was bundled.
launcher() {
  launch=("$bin/$1")
  [ -d "$here/lib" ] || return
  local driver
  driver=$(ldconfig -p 2>/dev/null | awk '/libcuda\.so\.1 .*x86-64/ {print $NF; exit}')
  launch=("$here/lib/ld-linux-x86-64.so.2" --library-path
    "$here/lib:$(dirname "${driver:-/usr/lib/x86_64-linux-gnu/libcuda.so.1}"):${LD_LIBRARY_PATH-}" "$bin/$1")
}

run_tests() {
  local log
  log=$(mktemp)
  launcher backend_cuda_gpu_test
  "${launch[@]}" 2>&1 | tee "$log"
  local code=${PIPESTATUS[0]} skips failures
  skips=$(grep -c '^\[  SKIPPED \] [A-Za-z.]* (' "$log")
  failures=$(grep -c '^\[  FAILED  \] [A-Za-z.]* (' "$log")
  passed=$((passed + $(grep -c '^\[       OK \]' "$log")))
  failed=$((failed + failures)) skipped=$((skipped + skips))
  if [ "$code" -ne 0 ] && [ "$failures" -eq 0 ]; then
    echo "FAILED: backend_cuda_gpu_test ended with code $code"
    failed=$((failed + 1))
  fi
  rm -f "$log"
}

# Large layers would take hours under it; the small ones run the same kernels.
run_sanitizer() {
  local tool
  launcher backend_cuda_gpu_test
  for tool in memcheck racecheck; do
    if ! command -v compute-sanitizer >/dev/null; then
      echo "skipped: compute-sanitizer $tool (not installed)"
      skipped=$((skipped + 1))
    elif compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all "${launch[@]}" \
        --gtest_filter='GpuTest.SmallShapes*:GpuTest.MeasuringCalls:GpuTest.SpecialInputs'; then
      passed=$((passed + 1))
    else
      echo "FAILED: compute-sanitizer $tool"
      failed=$((failed + 1))
    fi
  done
}

run_bench() {
  launcher quantize_bench_cuda
  if "${launch[@]}"; then
    passed=$((passed + 1))
  else
    echo "FAILED: quantize_bench_cuda"
    failed=$((failed + 1))
  fi
}

case ${1-} in
  --bundle) [ $# -eq 2 ] || { sed -n '3,7s/^# \{0,1\}//p' "$0"; exit 2; }; bundle "$2"; exit ;;
  '') ;;
  -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) echo "run.sh: unknown argument $1 (--bundle DIR)" >&2; exit 2 ;;
esac
for binary in "${binaries[@]}"; do
  [ -x "$bin/$binary" ] || { echo "run.sh: $bin/$binary is not built (needs nvcc: -DSINQ_CUDA=ON)" >&2; exit 2; }
done
run_tests
if [ $passed -eq 0 ] && [ $failed -eq 0 ]; then
  echo "no device: compute-sanitizer and the benchmark are skipped too"
  skipped=$((skipped + 3))
else
  run_sanitizer
  run_bench
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
