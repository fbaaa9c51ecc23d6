// What executes the CUDA device code must itself find broken kernels: ones that lack a barrier,
// ones whose threads disagree about it, ones that write beyond their shared memory.
#include "tests/fakes/cuda_on_cpu/cuda_on_cpu.h"

#include <numeric>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "kernels/cuda_launch.h"
#include "kernels/cuda_primitives.cuh"

namespace sinq::kernels {
namespace {

using cuda_on_cpu::LastFault;
using cuda_on_cpu::Order;
using cuda_on_cpu::Schedule;

constexpr int kThreads = 96;
constexpr unsigned kBlocks = 5;
constexpr Schedule kSchedules[] = {
    {Order::kForward, 0}, {Order::kReverse, 0}, {Order::kRandom, 1}, {Order::kRandom, 2}};

struct Params {
  std::vector<int>* out;
};

int Launch(void (*kernel)(Params), std::vector<int>& out, size_t shared_bytes) {
  out.assign(kBlocks * kThreads, -7);
  return LaunchKernel(kernel, {kBlocks, kThreads, static_cast<unsigned>(shared_bytes)}, nullptr,
                      Params{&out});
}

int& Out(Params p) { return (*p.out)[static_cast<size_t>(GlobalThread())]; }

// Each thread leaves its number; each takes its opposite's.
template <bool kHasBarrier>
void MirrorKernel(Params p) {
  int* slots = SharedMemory<int>();
  slots[ThreadInBlock()] = ThreadInBlock();
  if (kHasBarrier) BlockBarrier();
  Out(p) = slots[kThreads - 1 - ThreadInBlock()];
}

std::vector<int> Mirrored() {
  std::vector<int> expected;
  for (unsigned b = 0; b < kBlocks; ++b) {
    for (int t = 0; t < kThreads; ++t) expected.push_back(kThreads - 1 - t);
  }
  return expected;
}

TEST(CudaOnCpuTest, RunsEveryThreadOfEveryBlockInEveryOrder) {
  for (const Schedule& schedule : kSchedules) {
    cuda_on_cpu::SetSchedule(schedule);
    std::vector<int> out;
    EXPECT_EQ(Launch(MirrorKernel<true>, out, kThreads * sizeof(int)), 0) << LastFault();
    EXPECT_EQ(out, Mirrored());
  }
}

TEST(CudaOnCpuTest, AMissingBlockBarrierIsCaught) {
  for (const Schedule& schedule : kSchedules) {
    cuda_on_cpu::SetSchedule(schedule);
    std::vector<int> out;
    EXPECT_EQ(Launch(MirrorKernel<false>, out, kThreads * sizeof(int)), 0);
    EXPECT_NE(out, Mirrored()) << "order " << static_cast<int>(schedule.order);
  }
}

// Reads its right neighbour within the warp, twice; without the second barrier the first to run
// spoils the value that the others still want.
template <bool kHasSecondBarrier>
void RotateTwiceKernel(Params p) {
  int* slots = SharedMemory<int>() + WarpInBlock() * kWarpThreads;
  int value = LaneInWarp();
  for (int round = 0; round < 2; ++round) {
    slots[LaneInWarp()] = value;
    WarpBarrier();
    value = slots[(LaneInWarp() + 1) % kWarpThreads];
    if (kHasSecondBarrier) WarpBarrier();
  }
  Out(p) = value;
}

bool IsRotatedTwice(const std::vector<int>& out) {
  for (size_t i = 0; i < out.size(); ++i) {
    if (out[i] != static_cast<int>(i % 32 + 2) % 32) return false;
  }
  return true;
}

TEST(CudaOnCpuTest, AMissingWarpBarrierIsCaughtInSomeOrder) {
  int wrong = 0;
  for (const Schedule& schedule : kSchedules) {
    cuda_on_cpu::SetSchedule(schedule);
    std::vector<int> out;
    EXPECT_EQ(Launch(RotateTwiceKernel<true>, out, kThreads * sizeof(int)), 0) << LastFault();
    EXPECT_TRUE(IsRotatedTwice(out));
    EXPECT_EQ(Launch(RotateTwiceKernel<false>, out, kThreads * sizeof(int)), 0);
    wrong += !IsRotatedTwice(out);
  }
  EXPECT_GT(wrong, 0);
}

void ShuffleKernel(Params p) {
  unsigned value = static_cast<unsigned>(ThreadInBlock());
  // Two in a row: a lane that runs ahead must not spoil the value of the first.
  const unsigned first = __shfl_xor_sync(kWholeWarp, value, 5);
  const unsigned second = __shfl_xor_sync(kWholeWarp, first + 1000, 5);
  Out(p) = static_cast<int>(first * 10000 + second);
}

TEST(CudaOnCpuTest, ShufflesExchangeValues) {
  for (const Schedule& schedule : kSchedules) {
    cuda_on_cpu::SetSchedule(schedule);
    std::vector<int> out;
    ASSERT_EQ(Launch(ShuffleKernel, out, 0), 0) << LastFault();
    for (int t = 0; t < kThreads; ++t)
      EXPECT_EQ(out[static_cast<size_t>(t)], (t ^ 5) * 10000 + t + 1000);
  }
}

// ---------------------------------------------------------------- faults

void ExpectFault(void (*kernel)(Params), size_t shared_bytes, const char* what) {
  for (const Schedule& schedule : kSchedules) {
    cuda_on_cpu::SetSchedule(schedule);
    std::vector<int> out;
    EXPECT_EQ(Launch(kernel, out, shared_bytes), cuda_on_cpu::kLaunchFailure);
    EXPECT_TRUE(absl::StrContains(LastFault(), what)) << LastFault();
    // The next launch is not affected.
    EXPECT_EQ(Launch(MirrorKernel<true>, out, kThreads * sizeof(int)), 0) << LastFault();
    EXPECT_EQ(out, Mirrored());
  }
}

TEST(CudaOnCpuTest, ABlockBarrierThatOneThreadSkipsIsAFault) {
  ExpectFault(
      [](Params) {
        if (ThreadInBlock() != 40) BlockBarrier();
      },
      0, "not every thread reached the block barrier");
}

TEST(CudaOnCpuTest, AWarpBarrierThatOneLaneSkipsIsAFault) {
  ExpectFault(
      [](Params) {
        if (ThreadInBlock() != 40) WarpBarrier();
      },
      0, "not every lane reached the same warp operation");
}

TEST(CudaOnCpuTest, DifferentBarriersAreAFault) {
  ExpectFault(
      [](Params) {
        if (LaneInWarp() < 16) {
          WarpBarrier();
        } else {
          BlockBarrier();
        }
      },
      0, "not every lane reached the same warp operation");
}

TEST(CudaOnCpuTest, AShuffleThatMeetsABarrierIsAFault) {
  ExpectFault(
      [](Params p) {
        if (LaneInWarp() < 16) {
          WarpBarrier();
        } else {
          Out(p) = static_cast<int>(__shfl_xor_sync(kWholeWarp, 1u, 1));
        }
      },
      0, "not every lane reached the same warp operation");
}

// AddressSanitizer ends the process there instead.
#if !defined(__SANITIZE_ADDRESS__)
TEST(CudaOnCpuTest, WritingBeyondSharedMemoryIsAFault) {
  ExpectFault([](Params) { SharedMemory<int>()[ThreadInBlock()] = 1; },
              (kThreads - 1) * sizeof(int), "wrote beyond its 380 bytes");
}
#endif

TEST(CudaOnCpuTest, AShapeThatCannotBeLaunchedIsRefused) {
  std::vector<int> out(1);
  EXPECT_EQ(LaunchKernel<Params>(MirrorKernel<true>, {1, 1056, 0}, nullptr, Params{&out}),
            cuda_on_cpu::kInvalidConfiguration);
  EXPECT_EQ(
      LaunchKernel<Params>(MirrorKernel<true>, {1, 32, static_cast<unsigned>(kMaxSharedBytes) + 16},
                           nullptr, Params{&out}),
      cuda_on_cpu::kInvalidConfiguration);
}

}  // namespace
}  // namespace sinq::kernels
