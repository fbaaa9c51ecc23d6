// What the machine, or the container around this process, has to offer.
#ifndef SINQ_SERVER_BASE_MACHINE_H_
#define SINQ_SERVER_BASE_MACHINE_H_

#include <cstdint>

namespace sinq {

// CPUs that this process may run on; at least 1.
int UsableCpus();
// The smaller of the physical memory and the limit of the control group (cgroup v2 memory.max).
uint64_t UsableMemoryBytes();
// For threads that do nothing but compute: on a busy machine the calling thread waits for those
// that read, digest and answer, which need little and keep it supplied. As far as the system lets
// it.
void LetOthersGoFirst();

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_MACHINE_H_
