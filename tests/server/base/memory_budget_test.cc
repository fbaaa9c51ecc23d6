#include "server/base/memory_budget.h"

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "server/base/error.h"

namespace sinq {
namespace {

using Reservation = MemoryBudget::Reservation;

bool Never() { return false; }

TEST(MemoryBudget, CountsWhatIsHeld) {
  MemoryBudget budget(100);
  {
    absl::StatusOr<Reservation> a = budget.Reserve(60, Never);
    ASSERT_TRUE(a.ok());
    absl::StatusOr<Reservation> b = budget.Reserve(40, Never);
    ASSERT_TRUE(b.ok());
    EXPECT_EQ(budget.held_bytes(), 100u);
    Reservation moved = *std::move(a);
    EXPECT_EQ(moved.bytes(), 60u);
    EXPECT_EQ(budget.held_bytes(), 100u);
    moved = Reservation();
    EXPECT_EQ(budget.held_bytes(), 40u);
  }
  EXPECT_EQ(budget.held_bytes(), 0u);
  EXPECT_EQ(budget.peak_bytes(), 100u);
}

TEST(MemoryBudget, TheLargestTensorRunsAlone) {
  MemoryBudget budget(100);
  absl::StatusOr<Reservation> large = budget.Reserve(1000, Never);
  ASSERT_TRUE(large.ok());
  std::atomic<bool> stop = false;
  std::thread other([&] {
    const absl::Status status = budget.Reserve(1, [&] { return stop.load(); }).status();
    EXPECT_EQ(GetErrorDetails(status).reason, Reason::kCancelled);
  });
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(budget.held_bytes(), 1000u);
  stop = true;
  other.join();
}

// Without tickets the small requests, which always fit, would pass the large one for ever.
TEST(MemoryBudget, SmallRequestsDoNotOvertakeALargeOne) {
  MemoryBudget budget(100);
  absl::StatusOr<Reservation> held = budget.Reserve(50, Never);
  ASSERT_TRUE(held.ok());
  std::atomic<bool> large_granted = false, small_granted = false;
  absl::Notification large_waits;
  std::thread large([&] {
    const absl::StatusOr<Reservation> got = budget.Reserve(100, [&] {
      if (!large_waits.HasBeenNotified()) large_waits.Notify();
      return false;
    });
    EXPECT_TRUE(got.ok());
    EXPECT_FALSE(small_granted);
    large_granted = true;
  });
  large_waits.WaitForNotification();
  std::thread small([&] {
    const absl::StatusOr<Reservation> got = budget.Reserve(10, Never);  // would fit at once
    EXPECT_TRUE(got.ok());
    EXPECT_TRUE(large_granted);
    small_granted = true;
  });
  absl::SleepFor(absl::Milliseconds(80));
  EXPECT_FALSE(small_granted);
  *held = Reservation();
  large.join();
  small.join();
}

TEST(MemoryBudget, ACancelledWaiterLetsTheOthersPass) {
  MemoryBudget budget(100);
  absl::StatusOr<Reservation> held = budget.Reserve(50, Never);
  std::atomic<bool> stop = false;
  absl::Notification waits;
  std::thread large([&] {
    const absl::Status status = budget
                                    .Reserve(100,
                                             [&] {
                                               if (!waits.HasBeenNotified()) waits.Notify();
                                               return stop.load();
                                             })
                                    .status();
    EXPECT_TRUE(absl::IsCancelled(status));
  });
  waits.WaitForNotification();
  std::thread small([&] { EXPECT_TRUE(budget.Reserve(10, Never).ok()); });
  stop = true;
  large.join();
  small.join();
}

TEST(MemoryBudget, NeverHoldsMoreThanItsBudget) {
  MemoryBudget budget(1000);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&budget, t] {
      for (uint64_t i = 0; i < 200; ++i) {
        EXPECT_TRUE(
            budget.Reserve(1 + (i * 37 + static_cast<uint64_t>(t) * 101) % 900, Never).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(budget.peak_bytes(), 1000u);
  EXPECT_EQ(budget.held_bytes(), 0u);
}

TEST(MemoryBudget, HugeRequestsDoNotWrap) {
  MemoryBudget budget(100);
  absl::StatusOr<Reservation> held = budget.Reserve(1, Never);
  int asked = 0;
  const absl::Status status = budget.Reserve(UINT64_MAX, [&asked] { return ++asked > 1; }).status();
  EXPECT_TRUE(absl::IsCancelled(status));
}

TEST(MemoryBudgetTest, WhatTheMachineCannotHoldIsRefused) {
  MemoryBudget budget(100, 150);
  EXPECT_TRUE(budget.Reserve(150, [] { return false; }).ok());
  const absl::Status status = budget.Reserve(151, [] { return false; }).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ(GetErrorDetails(status).reason, Reason::kMemoryBudgetTooSmall);
}

TEST(MemoryBudgetTest, TryReserveNeverWaitsNorOverdraws) {
  MemoryBudget budget(100);
  {
    const auto most = budget.TryReserve(80);
    ASSERT_TRUE(most.has_value());
    EXPECT_FALSE(budget.TryReserve(21).has_value());
    EXPECT_TRUE(budget.TryReserve(20).has_value());
  }
  EXPECT_EQ(budget.held_bytes(), 0u);
  EXPECT_FALSE(budget.TryReserve(101).has_value());
}

}  // namespace
}  // namespace sinq
