#include "server/worker/kept_units.h"

#include "gtest/gtest.h"

namespace sinq {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
const auto kNever = [] { return false; };

class KeptUnitsTest : public testing::Test {
 protected:
  void Keep(int tensor, uint64_t size_bytes) {
    ASSERT_TRUE(kept_.Admit(size_bytes));
    UnitMemory memory;
    memory.weights = pool_.Acquire(size_bytes, kNever).value();
    memory.kept_bytes = size_bytes;
    memory.source_sha256 = std::to_string(tensor);
    kept_.Keep(tensor, std::move(memory));
  }

  MemoryBudget budget_{8 * kMiB};
  BufferPool pool_{budget_};
  bool idle_ = true;
  KeptUnits kept_{budget_, budget_.budget_bytes(), [this] { return idle_; }};
};

TEST_F(KeptUnitsTest, WhatIsKeptIsTakenOnce) {
  Keep(3, kMiB);
  EXPECT_FALSE(kept_.Take(4).has_value());
  const std::optional<UnitMemory> memory = kept_.Take(3);
  ASSERT_TRUE(memory.has_value());
  EXPECT_EQ(memory->source_sha256, "3");
  EXPECT_FALSE(kept_.Take(3).has_value());
}

TEST_F(KeptUnitsTest, HalfOfTheBudgetIsNotForIt) {
  Keep(1, 3 * kMiB);
  EXPECT_FALSE(kept_.Admit(2 * kMiB));
  EXPECT_TRUE(kept_.Admit(kMiB));
  EXPECT_FALSE(kept_.Admit(1));
  kept_.Drop(kMiB);
  EXPECT_TRUE(kept_.Take(1).has_value());
  EXPECT_TRUE(kept_.Admit(4 * kMiB));
}

TEST_F(KeptUnitsTest, AllButTheRoomForUnitsInWorkIsForIt) {
  KeptUnits kept(budget_, 3 * kMiB, [] { return true; });
  EXPECT_FALSE(kept.Admit(5 * kMiB + 1));
  EXPECT_FALSE(kept.HasRoom(5 * kMiB + 1));
  EXPECT_TRUE(kept.HasRoom(5 * kMiB));
  EXPECT_TRUE(kept.Admit(5 * kMiB));
  EXPECT_FALSE(kept.Admit(1));
}

TEST_F(KeptUnitsTest, WhoeverWaitsForMemoryGetsIt) {
  Keep(1, 4 * kMiB);
  const auto all = budget_.Reserve(8 * kMiB, kNever);  // would wait for ever
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_FALSE(kept_.Take(1).has_value());
  EXPECT_TRUE(kept_.Admit(4 * kMiB));
}

TEST_F(KeptUnitsTest, ItStaysWhileUnitsInWorkWillFreeMemory) {
  Keep(1, 4 * kMiB);
  idle_ = false;
  int asked = 0;
  const auto all = budget_.Reserve(8 * kMiB, [&] { return ++asked > 3; });
  EXPECT_TRUE(absl::IsCancelled(all.status()));
  EXPECT_TRUE(kept_.Take(1).has_value());
}

}  // namespace
}  // namespace sinq
