#include "client/error_details.h"

#include <google/protobuf/unknown_field_set.h>
#include <gtest/gtest.h>

namespace sinq::client {
namespace {

using google::protobuf::UnknownFieldSet;

std::string Bytes(const UnknownFieldSet& set) {
  std::string bytes;
  EXPECT_TRUE(set.SerializeToString(&bytes));
  return bytes;
}

std::string Any(const std::string& type, const UnknownFieldSet& value) {
  UnknownFieldSet any;
  any.AddLengthDelimited(1, "type.googleapis.com/" + type);
  any.AddLengthDelimited(2, Bytes(value));
  return Bytes(any);
}

TEST(ErrorDetails, ReadsErrorInfoAndRetryInfo) {
  UnknownFieldSet entry, info, duration, retry, status;
  entry.AddLengthDelimited(1, "limit");
  entry.AddLengthDelimited(2, "10000");
  info.AddLengthDelimited(1, "QUEUE_FULL");
  info.AddLengthDelimited(2, "sinqd");
  info.AddLengthDelimited(3, Bytes(entry));
  duration.AddVarint(1, 7);
  duration.AddVarint(2, 500000000);
  retry.AddLengthDelimited(1, Bytes(duration));
  status.AddVarint(1, 8);
  status.AddLengthDelimited(3, Any("google.rpc.ErrorInfo", info));
  status.AddLengthDelimited(3, Any("google.rpc.RetryInfo", retry));

  const absl::Status converted = FromGrpc(
      grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "The queue is full.", Bytes(status)));
  EXPECT_EQ(converted.code(), absl::StatusCode::kResourceExhausted);
  const ErrorDetails details = GetErrorDetails(converted);
  EXPECT_EQ(details.reason, "QUEUE_FULL");
  EXPECT_EQ(details.metadata.at("limit"), "10000");
  EXPECT_EQ(details.retry_after, absl::Milliseconds(7500));
}

TEST(ErrorDetails, BytesThatAreNoMessageGiveNoDetails) {
  const ErrorDetails details = GetErrorDetails(
      FromGrpc(grpc::Status(grpc::StatusCode::INTERNAL, "x", "\xff\xff\xff garbage")));
  EXPECT_EQ(details.reason, "");
  EXPECT_TRUE(details.metadata.empty());
  EXPECT_FALSE(details.retry_after.has_value());
}

}  // namespace
}  // namespace sinq::client
