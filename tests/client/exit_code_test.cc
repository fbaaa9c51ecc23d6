#include "client/exit_code.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "client/error_details.h"

namespace sinq::client {
namespace {

TEST(ExitCode, FollowsTheTable) {
  const std::pair<absl::StatusCode, int> kCases[] = {
      {absl::StatusCode::kOk, 0},
      {absl::StatusCode::kAborted, 1},
      {absl::StatusCode::kInternal, 1},
      {absl::StatusCode::kAlreadyExists, 1},
      {absl::StatusCode::kFailedPrecondition, 1},
      {absl::StatusCode::kCancelled, 1},
      {absl::StatusCode::kInvalidArgument, 2},
      {absl::StatusCode::kNotFound, 3},
      {absl::StatusCode::kUnauthenticated, 4},
      {absl::StatusCode::kPermissionDenied, 4},
      {absl::StatusCode::kUnavailable, 5},
      {absl::StatusCode::kResourceExhausted, 5},
      {absl::StatusCode::kDeadlineExceeded, 6},
      {absl::StatusCode::kDataLoss, 7},
  };
  for (const auto& [code, expected] : kCases) {
    EXPECT_EQ(ExitCodeFor(absl::Status(code, "x"), false), expected)
        << absl::StatusCodeToString(code);
  }
  EXPECT_EQ(ExitCodeFor(absl::CancelledError("x"), true), 130);
}

TEST(ExitCode, ExhaustedIsOnlyUnavailableIfItMayPass) {
  const absl::Status full = WithReason(absl::ResourceExhaustedError("x"), "QUEUE_FULL");
  const absl::Status budget =
      WithReason(absl::ResourceExhaustedError("x"), "MEMORY_BUDGET_TOO_SMALL");
  EXPECT_EQ(ExitCodeFor(full, false), 5);
  EXPECT_EQ(ExitCodeFor(budget, false), 1);
}

TEST(Failure, TextNamesReasonAndNextStep) {
  GlobalFlags flags;
  const absl::Status status =
      WithReason(absl::PermissionDeniedError("/etc is outside."), "PATH_OUTSIDE_ROOTS");
  const std::string text = DescribeFailure(status, false, flags);
  EXPECT_NE(text.find("/etc is outside."), std::string::npos);
  EXPECT_NE(text.find("PATH_OUTSIDE_ROOTS"), std::string::npos);
  EXPECT_NE(text.find("--allow-root"), std::string::npos);
}

TEST(Failure, JsonHasCodeReasonAndExitCode) {
  GlobalFlags flags;
  flags.output = OutputFormat::kJson;
  const auto json = nlohmann::json::parse(
      DescribeFailure(WithReason(absl::NotFoundError("gone"), "JOB_NOT_FOUND"), false, flags));
  EXPECT_EQ(json["error"]["code"], "NOT_FOUND");
  EXPECT_EQ(json["error"]["reason"], "JOB_NOT_FOUND");
  EXPECT_EQ(json["error"]["exit_code"], 3);
}

TEST(Failure, ServerTextCannotSteerTheTerminal) {
  EXPECT_EQ(DescribeFailure(absl::InternalError("a\x1b[2Jb"), false, GlobalFlags()).find('\x1b'),
            std::string::npos);
}

}  // namespace
}  // namespace sinq::client
