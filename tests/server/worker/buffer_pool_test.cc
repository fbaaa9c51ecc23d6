#include "server/worker/buffer_pool.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/fakes/fake_device.h"

namespace sinq {
namespace {

constexpr uint64_t kMi = 1 << 20;
bool Never() { return false; }

TEST(BufferPoolTest, AReturnedBufferIsUsedAgain) {
  MemoryBudget budget(64 * kMi);
  BufferPool pool(budget);
  auto first = pool.Acquire(3 * kMi, Never);
  ASSERT_TRUE(first.ok());
  const std::byte* data = first->buffer.data();
  pool.Release(*std::move(first));
  EXPECT_EQ(budget.held_bytes(), 3 * kMi);  // idle buffers count
  auto second = pool.Acquire(2 * kMi, Never);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->buffer.data(), data);
}

TEST(BufferPoolTest, TheLargestShareTheirBuffers) {
  MemoryBudget budget(64 * kMi);
  BufferPool pool(budget, nullptr, UINT64_MAX, 16 * kMi);
  pool.Release(*pool.Acquire(13 * kMi, Never));
  pool.Release(*pool.Acquire(16 * kMi, Never));
  EXPECT_EQ(budget.held_bytes(), 16 * kMi);
  auto held = pool.Acquire(16 * kMi, Never);
  pool.Release(*pool.Acquire(12 * kMi, Never));  // too small for that
  EXPECT_EQ(budget.held_bytes(), 28 * kMi);
}

TEST(BufferPoolTest, IdleBuffersMakeRoomForALargerOne) {
  MemoryBudget budget(4 * kMi);
  BufferPool pool(budget);
  pool.Release(*pool.Acquire(3 * kMi, Never));
  auto larger = pool.Acquire(4 * kMi, Never);
  ASSERT_TRUE(larger.ok());
  EXPECT_EQ(budget.peak_bytes(), 4 * kMi);
}

TEST(BufferPoolTest, TryAcquireTakesIdleBuffersAndNeverWaits) {
  MemoryBudget budget(4 * kMi);
  BufferPool pool(budget);
  auto held = pool.Acquire(2 * kMi, Never);
  ASSERT_TRUE(held.ok());
  const auto none = pool.TryAcquire(3 * kMi);
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_FALSE(none->has_value());
  EXPECT_TRUE(pool.TryAcquire(2 * kMi)->has_value());
  pool.Release(*std::move(held));
  EXPECT_TRUE(pool.TryAcquire(1 * kMi)->has_value());
}

TEST(BufferPoolTest, WhatIsHeldForLongTakesNoMuchLargerBufferUnlessItMust) {
  MemoryBudget budget(5 * kMi);
  BufferPool pool(budget);
  pool.Release(*pool.Acquire(3 * kMi, Never));
  const auto close = pool.TryAcquire(2 * kMi, BufferPool::Fit::kClose);
  EXPECT_EQ((*close)->buffer.SizeBytes(), 3 * kMi);
  pool.Release(*pool.Acquire(1 * kMi, Never));
  const auto own = pool.TryAcquire(1 * kMi, BufferPool::Fit::kClose);
  EXPECT_EQ((*own)->buffer.SizeBytes(), 1 * kMi);
}

TEST(BufferPoolTest, WithoutRoomAMuchLargerBufferDoes) {
  MemoryBudget budget(4 * kMi);
  BufferPool pool(budget);
  pool.Release(*pool.Acquire(4 * kMi, Never));
  const auto buffer = pool.TryAcquire(1 * kMi, BufferPool::Fit::kClose);
  EXPECT_EQ((*buffer)->buffer.SizeBytes(), 4 * kMi);
}

// Threads that hold one buffer each and want one of another size: none may wait for a buffer that
// lies idle.
TEST(BufferPoolTest, ATightBudgetNeverLocksUp) {
  MemoryBudget budget(5 * kMi);
  BufferPool pool(budget);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 200; ++i) {
        auto buffer = pool.Acquire(static_cast<uint64_t>(1 + (i + t) % 4) * kMi, Never);
        ASSERT_TRUE(buffer.ok());
        pool.Release(*std::move(buffer));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(budget.peak_bytes(), 5 * kMi);
}

TEST(BufferPoolTest, OthersThatWaitForTheBudgetGetIdleMemory) {
  MemoryBudget budget(4 * kMi);
  BufferPool pool(budget);
  auto held = pool.Acquire(4 * kMi, Never);
  ASSERT_TRUE(held.ok());
  std::atomic<bool> granted = false;
  std::thread other([&] { granted = budget.Reserve(2 * kMi, Never).ok(); });
  while (!budget.HasWaiters()) std::this_thread::yield();
  pool.Release(*std::move(held));
  other.join();
  EXPECT_TRUE(granted);
}

TEST(BufferPoolTest, AWaitEndsWhenCancelled) {
  MemoryBudget budget(kMi);
  BufferPool pool(budget);
  auto held = pool.Acquire(kMi, Never);
  EXPECT_TRUE(absl::IsCancelled(pool.Acquire(kMi, [] { return true; }).status()));
}

// A stream that stalls must not keep what a job waits for.
TEST(BufferPoolTest, MemoryThatIsIdleAlreadyIsGivenUpForAnotherPool) {
  MemoryBudget budget(4 * kMi);
  BufferPool stalled(budget), other(budget);
  stalled.Release(*stalled.Acquire(3 * kMi, Never));
  EXPECT_EQ(budget.held_bytes(), 3 * kMi);
  EXPECT_TRUE(other.Acquire(2 * kMi, Never).ok());
  EXPECT_LE(budget.peak_bytes(), 4 * kMi);
}

TEST(BufferPoolTest, BuffersLieInTheMemoryOfTheDevices) {
  MemoryBudget budget(64 * kMi);
  FakeHostMemory memory;
  {
    BufferPool pool(budget, &memory, 4 * kMi);
    auto first = pool.Acquire(3 * kMi, Never);
    EXPECT_EQ(memory.held_bytes(), 3 * kMi);
    EXPECT_EQ(first->buffer.SizeBytes(), 3 * kMi);
    auto above_the_bound = pool.Acquire(5 * kMi, Never);
    EXPECT_EQ(memory.held_bytes(), 3 * kMi);
    pool.Release(*std::move(first));
    EXPECT_TRUE(pool.Acquire(3 * kMi, Never).ok());
    EXPECT_EQ(memory.allocations(), 1);  // locking memory is slow: it is kept
  }
  EXPECT_EQ(memory.held_bytes(), 0u);
  EXPECT_EQ(budget.held_bytes(), 0u);
}

TEST(BufferPoolTest, OrdinaryMemoryDoesWhereTheDevicesHaveNoneLeft) {
  MemoryBudget budget(64 * kMi);
  FakeHostMemory memory(2 * kMi);
  BufferPool pool(budget, &memory);
  auto buffer = pool.Acquire(3 * kMi, Never);
  ASSERT_TRUE(buffer.ok());
  buffer->buffer.span()[3 * kMi - 1] = std::byte{1};
  EXPECT_EQ(memory.allocations(), 0);
}

}  // namespace
}  // namespace sinq
