#include "server/worker/workspaces.h"

#include <thread>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

namespace sinq {
namespace {

constexpr uint64_t kMi = 1 << 20;
const auto kNever = [] { return false; };

class WorkspacesTest : public testing::Test {
 protected:
  PooledBuffer TakeOne() {
    const Workspaces::Claim claim = workspaces_.TryClaim();
    return workspaces_.TryTake(claim).value();
  }

  MemoryBudget budget_{8 * kMi};
  Workspaces workspaces_{budget_, nullptr, 2 * kMi, 3};
};

TEST_F(WorkspacesTest, AReturnedOneIsUsedAgain) {
  PooledBuffer first = TakeOne();
  EXPECT_EQ(first.buffer.SizeBytes(), 2 * kMi);
  std::byte* const data = first.buffer.data();
  workspaces_.Release(std::move(first));
  EXPECT_EQ(TakeOne().buffer.data(), data);
}

TEST_F(WorkspacesTest, ThereAreNoMoreThanMayBe) {
  const PooledBuffer first = TakeOne(), second = TakeOne(), third = TakeOne();
  const Workspaces::Claim claim = workspaces_.TryClaim();
  EXPECT_FALSE(workspaces_.HasFree());
  EXPECT_FALSE(workspaces_.TryTake(claim).has_value());
  EXPECT_EQ(budget_.held_bytes(), 6 * kMi);
}

TEST_F(WorkspacesTest, AClaimIsMetByAUnitInWorkWhateverTheBudgetHolds) {
  PooledBuffer in_work = TakeOne();
  const Workspaces::Claim claim = workspaces_.TryClaim();
  const auto others = budget_.Reserve(6 * kMi, kNever);
  ASSERT_TRUE(others.ok());
  EXPECT_FALSE(workspaces_.TryTake(claim).has_value());
  std::thread unit([&] { workspaces_.Release(std::move(in_work)); });
  EXPECT_EQ(workspaces_.Take(claim).buffer.SizeBytes(), 2 * kMi);
  unit.join();
}

TEST_F(WorkspacesTest, WhoeverWaitsForTheBudgetGetsAllButOneThatIsClaimed) {
  PooledBuffer first = TakeOne(), second = TakeOne();
  workspaces_.Release(std::move(first));
  workspaces_.Release(std::move(second));
  Workspaces::Claim claim = workspaces_.TryClaim();
  const auto most = budget_.Reserve(6 * kMi, kNever);
  ASSERT_TRUE(most.ok());
  EXPECT_EQ(budget_.held_bytes(), 8 * kMi);
  int asked = 0;
  EXPECT_FALSE(budget_.Reserve(2 * kMi, [&] { return ++asked > 2; }).ok());
  claim.reset();
  EXPECT_TRUE(budget_.Reserve(2 * kMi, kNever).ok());
}

TEST_F(WorkspacesTest, OneInWorkGoesBackToThoseWhoWait) {
  PooledBuffer in_work = TakeOne();
  absl::Notification waits;
  std::thread other([&] {
    const auto all = budget_.Reserve(8 * kMi, [&] {
      if (!waits.HasBeenNotified() && budget_.HasWaiters()) waits.Notify();
      return false;
    });
    EXPECT_TRUE(all.ok());
  });
  waits.WaitForNotification();
  workspaces_.Release(std::move(in_work));
  other.join();
  EXPECT_EQ(budget_.held_bytes(), 0u);
}

TEST_F(WorkspacesTest, WithoutRoomThereIsNoClaim) {
  const auto others = budget_.Reserve(7 * kMi, kNever);
  EXPECT_EQ(workspaces_.TryClaim(), nullptr);
  EXPECT_TRUE(absl::IsCancelled(workspaces_.AwaitClaim([] { return true; }).status()));
}

TEST_F(WorkspacesTest, AClaimMayBringItsMemory) {
  auto both = budget_.Reserve(8 * kMi, kNever);
  ASSERT_TRUE(both.ok());
  const auto claim = workspaces_.ClaimWith(both->Split(2 * kMi));
  ASSERT_TRUE(claim.ok()) << claim.status();
  EXPECT_EQ(both->bytes(), 6 * kMi);
  EXPECT_TRUE(workspaces_.TryTake(*claim).has_value());
}

}  // namespace
}  // namespace sinq
