// The one boundary between absl::Status and grpc::Status.
#ifndef SINQ_SERVER_RPC_GRPC_STATUS_H_
#define SINQ_SERVER_RPC_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"

namespace sinq {

// Message bounded by kMaxErrorMessageBytes; ErrorInfo and, where a retry can help, RetryInfo as
// google.rpc.Status details.
grpc::Status ToGrpcStatus(const absl::Status& status);
// "OK", "NOT_FOUND", ...: the label of RPC metrics.
std::string GrpcCodeName(grpc::StatusCode code);

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_GRPC_STATUS_H_
