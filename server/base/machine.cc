#include "server/base/machine.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace sinq {
namespace {

constexpr int kComputingNice = 10;  // an eleventh of the share of an ordinary thread

}  // namespace

int UsableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

uint64_t UsableMemoryBytes() {
  const uint64_t physical = static_cast<uint64_t>(std::max(sysconf(_SC_PHYS_PAGES), 1L)) *
                            static_cast<uint64_t>(std::max(sysconf(_SC_PAGESIZE), 1L));
  std::ifstream file("/sys/fs/cgroup/memory.max");  // "max" where there is no limit
  uint64_t limit = 0;
  return file >> limit && limit > 0 ? std::min(limit, physical) : physical;
}

void LetOthersGoFirst() {
  // Linux: of the thread alone. Not allowed to: then all threads are equal, as before.
  static_cast<void>(::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kComputingNice));
}

}  // namespace sinq
