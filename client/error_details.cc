#include "client/error_details.h"

#include <google/protobuf/empty.pb.h>
#include <google/protobuf/unknown_field_set.h>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"

namespace sinq::client {
namespace {

using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

constexpr char kRpcStatus[] = "type.googleapis.com/google.rpc.Status";
constexpr char kReason[] = "sinq.client/reason";

// The four small messages of google.rpc are read by field number: their numbers are fixed, and the
// client then needs no generated code for types that are not ours.
class Fields {
 public:
  explicit Fields(const std::string& bytes) { (void)set_.ParseFromString(bytes); }
  // The last occurrence; empty if absent.
  std::string Bytes(int number) const {
    std::string value;
    for (int i = 0; i < set_.field_count(); ++i) {
      const UnknownField& field = set_.field(i);
      if (Is(field, number, UnknownField::TYPE_LENGTH_DELIMITED)) value = field.length_delimited();
    }
    return value;
  }
  int64_t Varint(int number) const {
    uint64_t value = 0;
    for (int i = 0; i < set_.field_count(); ++i) {
      const UnknownField& field = set_.field(i);
      if (Is(field, number, UnknownField::TYPE_VARINT)) value = field.varint();
    }
    return static_cast<int64_t>(value);
  }
  template <typename Use>
  void ForEach(int number, Use use) const {
    for (int i = 0; i < set_.field_count(); ++i) {
      const UnknownField& field = set_.field(i);
      if (Is(field, number, UnknownField::TYPE_LENGTH_DELIMITED)) use(field.length_delimited());
    }
  }

 private:
  static bool Is(const UnknownField& field, int number, UnknownField::Type type) {
    return field.number() == number && field.type() == type;
  }
  UnknownFieldSet set_;
};

// google.rpc.Status.details = 3; google.protobuf.Any: type_url = 1, value = 2;
// ErrorInfo: reason = 1, metadata = 3; RetryInfo: retry_delay = 1; Duration: seconds = 1, nanos
// = 2.
void ReadDetail(const Fields& any, ErrorDetails& details) {
  const std::string type = any.Bytes(1);
  const Fields value(any.Bytes(2));
  if (absl::EndsWith(type, "/google.rpc.ErrorInfo")) {
    details.reason = value.Bytes(1);
    value.ForEach(3, [&](const std::string& entry) {
      const Fields pair(entry);
      details.metadata[pair.Bytes(1)] = pair.Bytes(2);
    });
  } else if (absl::EndsWith(type, "/google.rpc.RetryInfo")) {
    const Fields delay(value.Bytes(1));
    details.retry_after = absl::Seconds(delay.Varint(1)) + absl::Nanoseconds(delay.Varint(2));
  }
}

}  // namespace

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  if (!status.error_details().empty()) {
    result.SetPayload(kRpcStatus, absl::Cord(status.error_details()));
  }
  return result;
}

absl::Status WithReason(absl::Status status, absl::string_view reason) {
  status.SetPayload(kReason, absl::Cord(reason));
  return status;
}

ErrorDetails GetErrorDetails(const absl::Status& status) {
  ErrorDetails details;
  if (const auto payload = status.GetPayload(kRpcStatus)) {
    Fields(std::string(*payload)).ForEach(3, [&](const std::string& any) {
      ReadDetail(Fields(any), details);
    });
  }
  if (const auto reason = status.GetPayload(kReason)) details.reason = std::string(*reason);
  return details;
}

}  // namespace sinq::client
