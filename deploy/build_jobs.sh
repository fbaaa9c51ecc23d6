#!/usr/bin/env bash
# Prints how many compiler processes may run at once: one per core, and 1.5 GiB of memory for each,
# because a file that includes gRPC's headers takes about 1 GiB to compile.
set -euo pipefail
cores=$(nproc)
memory_kib=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
by_memory=$((memory_kib / (1536 * 1024)))
jobs=$((cores < by_memory ? cores : by_memory))
echo $((jobs > 0 ? jobs : 1))
