#include "tests/fakes/cuda_on_cpu/cuda_on_cpu.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cuda_runtime.h"
#include "tests/fakes/cuda_on_cpu/fiber.h"
#include "tests/fakes/cuda_on_cpu/sanitizer.h"

namespace sinq::kernels {

// The memory behind SharedMemory of kernels/cuda_primitives.cuh, with room for the guard.
constexpr size_t kGuardBytes = 256;
__thread uint4 shared_memory[(cuda_on_cpu::kMaxSharedBytes + kGuardBytes) / sizeof(uint4)];

}  // namespace sinq::kernels

namespace sinq::cuda_on_cpu {
namespace {

constexpr unsigned kWarp = 32;
constexpr int kGuardPattern = 0x5a;

enum class State : uint8_t { kReady, kAtWarpOperation, kAtBlockBarrier, kFinished };
enum class WarpOperation : uint8_t { kBarrier, kExchange };

class Machine;

// One CUDA thread; its fiber serves one block after another.
struct Thread {
  Thread(Machine* owner, unsigned index);
  Machine* const machine;
  Indices indices;
  State state = State::kFinished;
  WarpOperation operation = WarpOperation::kBarrier;
  // Values of this lane's last two exchanges: a lane may be one ahead of its neighbours.
  std::array<uint64_t, 2> exchanged{};
  unsigned exchanges = 0;
  Fiber fiber;
};

class Machine {
 public:
  void set_schedule(const Schedule& schedule) { schedule_ = schedule; }
  const std::string& fault() const { return fault_; }
  int64_t launches() const { return launches_; }
  Thread& current() { return *current_; }

  int RunGrid(const Shape& shape, absl::FunctionRef<void()> body) {
    ++launches_;
    fault_.clear();
    if (shape.grid == 0 || shape.grid > 0x7fffffff || shape.block == 0 ||
        shape.block > kMaxThreads || shape.block % kWarp != 0 ||
        shape.shared_bytes > kMaxSharedBytes) {
      fault_ = absl::StrCat("grid ", shape.grid, ", block ", shape.block, ", shared bytes ",
                            shape.shared_bytes, " cannot be launched");
      return kInvalidConfiguration;
    }
    shape_ = shape;
    body_ = &body;
    random_ = schedule_.seed * 2654435761u + 1;
    while (threads_.size() < shape.block)
      threads_.push_back(std::make_unique<Thread>(this, static_cast<unsigned>(threads_.size())));
    for (unsigned n = 0; n < shape.grid && fault_.empty(); ++n) RunBlock(BlockOf(n));
    return fault_.empty() ? 0 : kLaunchFailure;
  }

  // On a fiber: one piece of work after another.
  void Serve(Thread& thread) {
    for (;;) {
      (*body_)();
      thread.state = State::kFinished;
      thread.fiber.Suspend();
    }
  }

  void Wait(Thread& thread, State state) {
    thread.state = state;
    thread.fiber.Suspend();
  }

  void Refuse(const std::string& what) {
    if (fault_.empty()) fault_ = what;
  }

  Thread& LaneOf(const Thread& thread, unsigned lane) {
    return *threads_[thread.indices.thread / kWarp * kWarp + lane];
  }

 private:
  uint32_t Random() {
    random_ = random_ * 1664525u + 1013904223u;
    return random_ >> 8;
  }

  // The n-th block to run. Random: from a random one on, by a step that has no factor in common
  // with the number of blocks.
  unsigned BlockOf(unsigned n) {
    if (schedule_.order == Order::kForward) return n;
    if (schedule_.order == Order::kReverse) return shape_.grid - 1 - n;
    if (n == 0) {
      first_block_ = Random() % shape_.grid;
      block_step_ = Random() % shape_.grid + 1;
      while (std::gcd(block_step_, shape_.grid) != 1) ++block_step_;
    }
    return static_cast<unsigned>((first_block_ + uint64_t{n} * block_step_) % shape_.grid);
  }

  void Permute(std::array<uint16_t, kWarp>& order, unsigned count) {
    std::iota(order.begin(), order.begin() + count, uint16_t{0});
    if (schedule_.order == Order::kReverse) std::reverse(order.begin(), order.begin() + count);
    if (schedule_.order != Order::kRandom) return;
    for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[Random() % i]);
  }

  void RunBlock(unsigned block) {
    FillShared();
    for (unsigned t = 0; t < shape_.block; ++t) {
      threads_[t]->indices = {t, block, shape_.block, shape_.grid};
      threads_[t]->state = State::kReady;
      threads_[t]->exchanges = 0;
    }
    const unsigned warps = shape_.block / kWarp;
    do {
      std::array<uint16_t, kWarp> order;
      Permute(order, warps);
      for (unsigned w = 0; w < warps && fault_.empty(); ++w) RunWarp(order[w]);
    } while (fault_.empty() && ReleaseBlock(block));
    CheckGuard(block);
    if (fault_.empty()) return;
    for (const std::unique_ptr<Thread>& thread : threads_) {
      if (thread->state != State::kFinished) thread->fiber.Reset();
      thread->state = State::kFinished;
    }
  }

  // Until every lane is at a block barrier or through.
  void RunWarp(unsigned warp) {
    std::array<uint16_t, kWarp> order;
    do {
      Permute(order, kWarp);
      for (const uint16_t lane : order) {
        Thread& thread = *threads_[warp * kWarp + lane];
        if (thread.state != State::kReady) continue;
        current_ = &thread;
        thread.fiber.Resume();
        if (!fault_.empty()) return;
      }
    } while (ReleaseWarp(warp));
  }

  std::string Census(unsigned first, unsigned count) const {
    unsigned counts[4] = {};
    for (unsigned t = first; t < first + count; ++t)
      ++counts[static_cast<size_t>(threads_[t]->state)];
    return absl::StrCat(counts[1], " threads wait at a warp operation, ", counts[2],
                        " at a block barrier, ", counts[3], " have finished");
  }

  bool ReleaseWarp(unsigned warp) {
    const auto begin = threads_.begin() + static_cast<std::ptrdiff_t>(warp * kWarp);
    const auto waiting = std::count_if(begin, begin + kWarp, [](const auto& thread) {
      return thread->state == State::kAtWarpOperation;
    });
    if (waiting == 0) return false;
    const bool same = std::all_of(begin, begin + kWarp, [&](const auto& thread) {
      return thread->operation == (*begin)->operation;
    });
    if (waiting != kWarp || !same) {
      Refuse(absl::StrCat("block ", (*begin)->indices.block, " warp ", warp,
                          ": not every lane reached the same warp operation: ",
                          Census(warp * kWarp, kWarp)));
      return false;
    }
    std::for_each(begin, begin + kWarp, [](const auto& thread) { thread->state = State::kReady; });
    return true;
  }

  bool ReleaseBlock(unsigned block) {
    const auto end = threads_.begin() + static_cast<std::ptrdiff_t>(shape_.block);
    const auto waiting = std::count_if(threads_.begin(), end, [](const auto& thread) {
      return thread->state == State::kAtBlockBarrier;
    });
    if (waiting == 0) return false;
    if (waiting != static_cast<std::ptrdiff_t>(shape_.block)) {
      Refuse(absl::StrCat("block ", block, ": not every thread reached the block barrier: ",
                          Census(0, shape_.block)));
      return false;
    }
    std::for_each(threads_.begin(), end, [](const auto& t) { t->state = State::kReady; });
    return true;
  }

  // Different patterns in different orders: not-a-numbers vanish in a minimum, large numbers do
  // not.
  void FillShared() {
    auto* bytes = reinterpret_cast<std::byte*>(kernels::shared_memory);
    Allow(bytes, sizeof(kernels::shared_memory));
    std::memset(bytes, schedule_.order == Order::kForward ? 0xff : 0x7b, shape_.shared_bytes);
    std::memset(bytes + shape_.shared_bytes, kGuardPattern, kernels::kGuardBytes);
    Forbid(bytes + shape_.shared_bytes, kernels::kGuardBytes);
  }

  void CheckGuard(unsigned block) {
    const auto* guard =
        reinterpret_cast<const std::byte*>(kernels::shared_memory) + shape_.shared_bytes;
    Allow(guard, kernels::kGuardBytes);
    if (!std::all_of(guard, guard + kernels::kGuardBytes,
                     [](std::byte b) { return b == std::byte{kGuardPattern}; }))
      Refuse(absl::StrCat("block ", block, " wrote beyond its ", shape_.shared_bytes,
                          " bytes of shared memory"));
  }

  Schedule schedule_;
  Shape shape_;
  const absl::FunctionRef<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Thread>> threads_;
  Thread* current_ = nullptr;
  std::string fault_;
  int64_t launches_ = 0;
  uint32_t random_ = 1;
  unsigned first_block_ = 0, block_step_ = 1;
};

Thread::Thread(Machine* owner, unsigned index)
    : machine(owner),
      indices{index, 0, 0, 0},
      fiber(
          [](void* argument) {
            auto* thread = static_cast<Thread*>(argument);
            thread->machine->Serve(*thread);
          },
          this) {}

Machine& ThisMachine() {
  thread_local Machine machine;
  return machine;
}

void ReachWarpOperation(unsigned mask, WarpOperation operation) {
  Machine& machine = ThisMachine();
  if (mask != 0xffffffff) machine.Refuse("only whole warps may synchronise here");
  machine.current().operation = operation;
  machine.Wait(machine.current(), State::kAtWarpOperation);
}

}  // namespace

void SetSchedule(const Schedule& schedule) { ThisMachine().set_schedule(schedule); }
const std::string& LastFault() { return ThisMachine().fault(); }
int64_t Launches() { return ThisMachine().launches(); }

int RunGrid(const Shape& shape, absl::FunctionRef<void()> thread_body) {
  return ThisMachine().RunGrid(shape, thread_body);
}

const Indices& CurrentIndices() { return ThisMachine().current().indices; }

void ReachBlockBarrier() {
  Machine& machine = ThisMachine();
  machine.Wait(machine.current(), State::kAtBlockBarrier);
}

void ReachWarpBarrier(unsigned mask) { ReachWarpOperation(mask, WarpOperation::kBarrier); }

uint64_t ExchangeInWarp(unsigned mask, uint64_t value, unsigned from) {
  Machine& machine = ThisMachine();
  Thread& thread = machine.current();
  const unsigned slot = thread.exchanges++ % 2;
  thread.exchanged[slot] = value;
  ReachWarpOperation(mask, WarpOperation::kExchange);
  return machine.LaneOf(thread, from).exchanged[slot];
}

}  // namespace sinq::cuda_on_cpu
