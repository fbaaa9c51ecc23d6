#include "server/worker/turns.h"

#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sinq {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(Turns, WhoComesEarlyIsCalledWhenItsTurnIsThere) {
  Turns turns;
  const uint64_t a = turns.Join(), b = turns.Join(), c = turns.Join();
  std::vector<char> called;
  EXPECT_FALSE(turns.Begin(c, [&] { called.push_back('c'); }));
  EXPECT_FALSE(turns.Begin(b, [&] { called.push_back('b'); }));
  EXPECT_TRUE(turns.Begin(a, [&] { called.push_back('a'); }));
  EXPECT_THAT(called, IsEmpty());
  turns.Pass();
  EXPECT_THAT(called, ElementsAre('b'));
  turns.Pass();
  EXPECT_THAT(called, ElementsAre('b', 'c'));
  turns.Pass();
  EXPECT_TRUE(turns.Begin(turns.Join(), nullptr));
}

TEST(Turns, OnlyOneAtATimeAndAllInOrder) {
  constexpr int kThreads = 4, kEach = 500;
  Turns turns;
  std::vector<uint64_t> order;  // touched by whose turn it is
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < kEach; ++n) {
        const uint64_t number = turns.Join();
        const auto take = [&turns, &order, number] {
          order.push_back(number);
          turns.Pass();
        };
        if (turns.Begin(number, take)) take();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(order.size(), size_t{kThreads * kEach});
  for (size_t i = 0; i < order.size(); ++i) EXPECT_EQ(order[i], i);
}

}  // namespace
}  // namespace sinq
