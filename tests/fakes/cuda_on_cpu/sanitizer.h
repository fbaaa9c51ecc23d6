// What AddressSanitizer must be told about fibers and shared memory; nothing in other builds.
#ifndef SINQ_TESTS_FAKES_CUDA_ON_CPU_SANITIZER_H_
#define SINQ_TESTS_FAKES_CUDA_ON_CPU_SANITIZER_H_

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

namespace sinq::cuda_on_cpu {
inline constexpr size_t kStackBytes = 512 << 10;  // instrumented frames are several times as large
inline void StartSwitch(void** fake_stack, const void* bottom, size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
}
inline void FinishSwitch(void* fake_stack, const void** bottom, size_t* bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, bottom, bytes);
}
inline void Forbid(const void* memory, size_t bytes) { ASAN_POISON_MEMORY_REGION(memory, bytes); }
inline void Allow(const void* memory, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(memory, bytes); }
}  // namespace sinq::cuda_on_cpu

#else

namespace sinq::cuda_on_cpu {
inline constexpr size_t kStackBytes = 64 << 10;
inline void StartSwitch(void**, const void*, size_t) {}
inline void FinishSwitch(void*, const void**, size_t*) {}
inline void Forbid(const void*, size_t) {}
inline void Allow(const void*, size_t) {}
}  // namespace sinq::cuda_on_cpu

#endif
#endif  // SINQ_TESTS_FAKES_CUDA_ON_CPU_SANITIZER_H_
