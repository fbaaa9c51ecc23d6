// Runs CUDA kernels on the CPU, for tests: the .cu files are compiled as C++ against the
// cuda_runtime.h of this folder, and a launch runs every thread of every block as a fiber before it
// returns. Threads change only at barriers and shuffles, one warp after another, in an order that a
// test chooses: a kernel that lacks a barrier answers differently in one order than in another.
//  - Shared memory is filled with a pattern before each block and ends in a guard.
//  - A barrier or shuffle that some threads of the block or warp do not reach is a fault, not a
//    hang: the launch returns kLaunchFailure and LastFault tells which threads waited where.
// State is per OS thread.
#ifndef SINQ_TESTS_FAKES_CUDA_ON_CPU_CUDA_ON_CPU_H_
#define SINQ_TESTS_FAKES_CUDA_ON_CPU_CUDA_ON_CPU_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"

namespace sinq::cuda_on_cpu {

inline constexpr int kLaunchFailure = 719;         // cudaErrorLaunchFailure
inline constexpr int kInvalidConfiguration = 9;    // cudaErrorInvalidConfiguration
inline constexpr size_t kMaxSharedBytes = 48 << 10;  // without opting in, on every architecture
inline constexpr unsigned kMaxThreads = 1024;

// In which order blocks, the warps of a block and the threads of a warp get their turn.
enum class Order { kForward, kReverse, kRandom };
struct Schedule {
  Order order = Order::kForward;
  uint32_t seed = 1;  // kRandom
};
void SetSchedule(const Schedule& schedule);

// What went wrong in the last launch of this OS thread; empty if nothing did.
const std::string& LastFault();
// Launches of this OS thread so far.
int64_t Launches();

// ---- for the cuda_runtime.h of this folder

struct Shape {
  unsigned grid = 0, block = 0;
  size_t shared_bytes = 0;
};
// Returns a cudaError_t value.
int RunGrid(const Shape& shape, absl::FunctionRef<void()> thread_body);

struct Indices {
  unsigned thread = 0, block = 0, threads = 0, blocks = 0;
};
const Indices& CurrentIndices();

void ReachBlockBarrier();
void ReachWarpBarrier(unsigned mask);
// Every lane of the warp hands in `value` and gets that of lane `from`.
uint64_t ExchangeInWarp(unsigned mask, uint64_t value, unsigned from);

}  // namespace sinq::cuda_on_cpu

#endif  // SINQ_TESTS_FAKES_CUDA_ON_CPU_CUDA_ON_CPU_H_
