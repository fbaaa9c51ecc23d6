#include "server/rpc/executor.h"

#include <atomic>

#include "absl/synchronization/barrier.h"
#include "gtest/gtest.h"

namespace sinq {
namespace {

TEST(ExecutorTest, RunsEverythingBeforeItEnds) {
  std::atomic<int> done = 0;
  {
    Executor executor(3);
    for (int i = 0; i < 1000; ++i) executor.Run([&] { ++done; });
  }
  EXPECT_EQ(done, 1000);
}

// Tasks that wait for each other need a thread each.
TEST(ExecutorTest, GrowsToItsLimit) {
  std::atomic<int> through = 0;
  {
    Executor executor(4);
    auto* barrier = new absl::Barrier(4);
    for (int i = 0; i < 4; ++i) {
      executor.Run([&, barrier] {
        ++through;
        if (barrier->Block()) delete barrier;
      });
    }
  }
  EXPECT_EQ(through, 4);
}

}  // namespace
}  // namespace sinq
