#include "server/base/error.h"

#include <cerrno>
#include <set>
#include <string>

#include "gtest/gtest.h"
#include "server/base/limits.h"
#include "server/base/text.h"

namespace sinq {
namespace {

TEST(Error, DetailsTravelWithTheStatus) {
  const absl::Status status =
      MakeError(absl::StatusCode::kResourceExhausted, Reason::kQueueFull, "The queue is full.",
                {{"limit", "max_queued_jobs"}}, absl::Seconds(5));
  const absl::Status outer = Annotate(Annotate(status, "inner"), "outer");
  EXPECT_EQ(outer.message(), "outer: inner: The queue is full.");
  EXPECT_EQ(outer.code(), absl::StatusCode::kResourceExhausted);
  const ErrorDetails details = GetErrorDetails(outer);
  EXPECT_EQ(details.reason, Reason::kQueueFull);
  EXPECT_EQ(details.metadata.at("limit"), "max_queued_jobs");
  EXPECT_EQ(details.retry_after, absl::Seconds(5));
  EXPECT_TRUE(Annotate(absl::OkStatus(), "x").ok());
  EXPECT_EQ(GetErrorDetails(absl::InternalError("x")).reason, Reason::kUnspecified);
}

TEST(Error, ReasonNamesAreDistinctAndReadBack) {
  std::set<absl::string_view> names;
  for (int i = 0; i <= static_cast<int>(Reason::kInternal); ++i) {
    const Reason reason = static_cast<Reason>(i);
    EXPECT_TRUE(names.insert(ReasonName(reason)).second);
    EXPECT_EQ(ReasonFromName(ReasonName(reason)), reason);
  }
  EXPECT_EQ(ReasonName(Reason::kPathOutsideRoots), "PATH_OUTSIDE_ROOTS");
  EXPECT_EQ(ReasonFromName("NO_SUCH_REASON"), Reason::kUnspecified);
}

TEST(Error, HostileTextBecomesPrintableAndBounded) {
  const std::string hostile = std::string("\x1b[2J\xff") + std::string(100'000, 'x');
  const absl::Status status = MakeError(absl::StatusCode::kInvalidArgument,
                                        Reason::kMalformedSource, hostile, {{"tensor", hostile}});
  EXPECT_LE(status.message().size(), kMaxErrorMessageBytes);
  EXPECT_TRUE(IsValidUtf8(status.message()));
  EXPECT_EQ(status.message().find('\x1b'), absl::string_view::npos);
  EXPECT_TRUE(IsValidUtf8(GetErrorDetails(status).metadata.at("tensor")));
}

TEST(Error, AnErrorNeverPassesForSuccess) {
  EXPECT_FALSE(MakeError(absl::StatusCode::kOk, Reason::kInternal, "A mistake.").ok());
}

TEST(Error, ErrnoHasAReason) {
  for (const int full : {ENOSPC, EDQUOT}) {
    const absl::Status status = ErrnoToStatus(full, "Cannot write \"x\"");
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(GetErrorDetails(status).reason, Reason::kDiskFull);
  }
  EXPECT_TRUE(absl::IsNotFound(ErrnoToStatus(ENOENT, "Cannot open")));
  EXPECT_EQ(GetErrorDetails(ErrnoToStatus(EIO, "Cannot read")).reason, Reason::kIoError);
}

}  // namespace
}  // namespace sinq
