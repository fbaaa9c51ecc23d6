// What the machine, or the container around this process, has to offer.
#ifndef SINQ_SERVER_BASE_MACHINE_H_
#define SINQ_SERVER_BASE_MACHINE_H_

#include <cstdint>

namespace sinq {

// CPUs that this process may run on; at least 1.
int UsableCpus();
// The smaller of the physical memory and the limit of the control group (cgroup v2 memory.max).
uint64_t UsableMemoryBytes();

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_MACHINE_H_
