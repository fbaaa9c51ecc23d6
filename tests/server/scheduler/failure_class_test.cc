#include "server/scheduler/failure_class.h"

#include "gtest/gtest.h"
#include "server/base/error.h"

namespace sinq {
namespace {

TEST(FailureClassTest, WhatNeedsAPersonIsNeverRetried) {
  for (const auto code : {absl::StatusCode::kInvalidArgument, absl::StatusCode::kFailedPrecondition,
                          absl::StatusCode::kNotFound, absl::StatusCode::kPermissionDenied,
                          absl::StatusCode::kAlreadyExists, absl::StatusCode::kOutOfRange,
                          absl::StatusCode::kDataLoss, absl::StatusCode::kUnimplemented,
                          absl::StatusCode::kCancelled}) {
    EXPECT_FALSE(IsRetryable(absl::Status(code, "x"))) << absl::StatusCodeToString(code);
  }
  for (const Reason reason :
       {Reason::kDiskFull, Reason::kMemoryBudgetTooSmall, Reason::kLimitExceeded}) {
    EXPECT_FALSE(IsRetryable(MakeError(absl::StatusCode::kResourceExhausted, reason, "Full.")));
  }
}

TEST(FailureClassTest, WhatMayPassIsRetried) {
  EXPECT_TRUE(IsRetryable(absl::UnavailableError("x")));
  EXPECT_TRUE(IsRetryable(absl::InternalError("x")));
  EXPECT_TRUE(IsRetryable(ErrnoToStatus(EIO, "Cannot read")));
  EXPECT_TRUE(IsRetryable(ErrnoToStatus(EMFILE, "Cannot open")));
}

TEST(FailureClassTest, DelaysGrowToAMinute) {
  EXPECT_EQ(RetryDelay(1), absl::Seconds(1));
  EXPECT_EQ(RetryDelay(2), absl::Seconds(4));
  EXPECT_EQ(RetryDelay(4), absl::Minutes(1));
  EXPECT_EQ(RetryDelay(1000000), absl::Minutes(1));
  EXPECT_EQ(RetryDelay(0), absl::Seconds(1));
}

TEST(FailureClassTest, ErrorsKeepCodeAndReason) {
  const JobError error =
      ToJobError(MakeError(absl::StatusCode::kInvalidArgument, Reason::kNonFiniteWeight, "A NaN."));
  EXPECT_EQ(error.code, "INVALID_ARGUMENT");
  EXPECT_EQ(error.reason, Reason::kNonFiniteWeight);
  EXPECT_EQ(error.message, "A NaN.");
}

}  // namespace
}  // namespace sinq
