#include "client/cancel_token.h"

#include <gtest/gtest.h>

namespace sinq::client {
namespace {

TEST(CancelToken, SleepsUntilTheTimeIsOver) {
  CancelToken token;
  EXPECT_TRUE(token.SleepFor(absl::Milliseconds(1)));
}

TEST(CancelToken, CancelEndsSleepAndRunsActionsOfLivingScopesOnly) {
  CancelToken token;
  int ended = 0, living = 0, late = 0;
  {
    CancelToken::Scope scope(token, [&] { ++ended; });
  }
  CancelToken::Scope scope(token, [&] { ++living; });
  token.Cancel();
  CancelToken::Scope after(token, [&] { ++late; });
  EXPECT_TRUE(token.cancelled());
  EXPECT_FALSE(token.SleepFor(absl::Seconds(60)));
  EXPECT_EQ(ended, 0);
  EXPECT_EQ(living, 1);
  EXPECT_EQ(late, 1);
}

}  // namespace
}  // namespace sinq::client
