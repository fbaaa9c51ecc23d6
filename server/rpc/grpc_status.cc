#include "server/rpc/grpc_status.h"

#include "absl/time/time.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "sinq/v1/error_detail.pb.h"

namespace sinq {
namespace {

constexpr char kTypePrefix[] = "type.googleapis.com/google.rpc.";

void AddDetail(sinq::v1::StatusDetail& detail, const char* type,
               const google::protobuf::Message& message) {
  google::protobuf::Any* any = detail.add_details();
  any->set_type_url(std::string(kTypePrefix) + type);
  any->set_value(message.SerializeAsString());
}

std::string Details(const absl::Status& status, const std::string& message) {
  const ErrorDetails details = GetErrorDetails(status);
  sinq::v1::StatusDetail out;
  out.set_code(static_cast<int>(status.code()));
  out.set_message(message);
  sinq::v1::ErrorReason reason;
  reason.set_reason(std::string(ReasonName(details.reason)));
  reason.set_domain("sinqd");
  for (const auto& [key, value] : details.metadata) (*reason.mutable_metadata())[key] = value;
  AddDetail(out, "ErrorInfo", reason);
  if (details.retry_after.has_value()) {
    sinq::v1::RetryDelay retry;
    retry.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(*details.retry_after));
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(
        (*details.retry_after - absl::Seconds(absl::ToInt64Seconds(*details.retry_after))) /
        absl::Nanoseconds(1)));
    AddDetail(out, "RetryInfo", retry);
  }
  return out.SerializeAsString();
}

// At most `max_bytes`, cut between characters: a proto string must be valid UTF-8.
std::string CutText(absl::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return std::string(text);
  const auto continues = [&](size_t at) { return (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80; };
  size_t end = max_bytes;
  while (end > 0 && continues(end)) --end;
  return std::string(text.substr(0, end));
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message = CutText(status.message(), kMaxErrorMessageBytes);
  return {static_cast<grpc::StatusCode>(status.code()), message, Details(status, message)};
}

std::string GrpcCodeName(grpc::StatusCode code) {
  return absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
}

}  // namespace sinq
