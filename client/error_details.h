// The details that a server sends with an error (google.rpc.ErrorInfo, google.rpc.RetryInfo), and
// statuses made of them.
#ifndef SINQ_CLIENT_ERROR_DETAILS_H_
#define SINQ_CLIENT_ERROR_DETAILS_H_

#include <grpcpp/grpcpp.h>

#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace sinq::client {

struct ErrorDetails {
  std::string reason;  // "PATH_OUTSIDE_ROOTS"; empty if the server gave none
  std::map<std::string, std::string> metadata;  // "field", "limit", "tensor", "byte_offset", ...
  std::optional<absl::Duration> retry_after;
};

// Same code and message; the serialized google.rpc.Status travels as a payload.
absl::Status FromGrpc(const grpc::Status& status);
// A status of the client itself with a reason ("JOB_FAILED").
absl::Status WithReason(absl::Status status, absl::string_view reason);
// Empty details if there are none or they cannot be parsed.
ErrorDetails GetErrorDetails(const absl::Status& status);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_ERROR_DETAILS_H_
