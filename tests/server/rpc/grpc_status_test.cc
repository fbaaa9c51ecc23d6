#include "server/rpc/grpc_status.h"

#include <string>

#include "gtest/gtest.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "sinq/v1/error_detail.pb.h"

namespace sinq {
namespace {

TEST(GrpcStatusTest, CarriesReasonMetadataAndRetryDelay) {
  const grpc::Status status =
      ToGrpcStatus(MakeError(absl::StatusCode::kResourceExhausted, Reason::kQueueFull, "full",
                             {{"limit", "10"}}, absl::Milliseconds(1500)));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "full");
  v1::StatusDetail detail;
  ASSERT_TRUE(detail.ParseFromString(status.error_details()));
  EXPECT_EQ(detail.code(), 8);
  ASSERT_EQ(detail.details_size(), 2);
  EXPECT_EQ(detail.details(0).type_url(), "type.googleapis.com/google.rpc.ErrorInfo");
  v1::ErrorReason reason;
  ASSERT_TRUE(reason.ParseFromString(detail.details(0).value()));
  EXPECT_EQ(reason.reason(), "QUEUE_FULL");
  EXPECT_EQ(reason.metadata().at("limit"), "10");
  v1::RetryDelay retry;
  ASSERT_TRUE(retry.ParseFromString(detail.details(1).value()));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
  EXPECT_EQ(retry.retry_delay().nanos(), 500'000'000);
}

TEST(GrpcStatusTest, OkIsOk) { EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok()); }

// A message cut inside a character would not be a valid proto string.
TEST(GrpcStatusTest, LongMessagesAreCutBetweenCharacters) {
  for (size_t padding = 0; padding < 4; ++padding) {
    std::string message(padding, 'x');
    while (message.size() < 2 * kMaxErrorMessageBytes) message += "\xE2\x82\xAC";  // the euro sign
    const grpc::Status status = ToGrpcStatus(absl::InternalError(message));
    EXPECT_LE(status.error_message().size(), kMaxErrorMessageBytes);
    EXPECT_GT(status.error_message().size(), kMaxErrorMessageBytes - 4);
    EXPECT_EQ((status.error_message().size() - padding) % 3, 0u);
    EXPECT_FALSE(status.error_details().empty());
  }
}

TEST(GrpcStatusTest, CodeNamesAreTheCanonicalOnes) {
  EXPECT_EQ(GrpcCodeName(grpc::StatusCode::NOT_FOUND), "NOT_FOUND");
  EXPECT_EQ(GrpcCodeName(grpc::StatusCode::OK), "OK");
}

}  // namespace
}  // namespace sinq
