// grpc.health.v1.Health/Check. Its two messages have one field each, so the client reads them
// without generated code.
#ifndef SINQ_CLIENT_HEALTH_CHECK_H_
#define SINQ_CLIENT_HEALTH_CHECK_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

namespace sinq::client {

// Blocks. `state` becomes "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN" or "UNKNOWN".
grpc::Status HealthCheck(const std::shared_ptr<grpc::Channel>& channel,
                         grpc::ClientContext* context, const std::string& service,
                         std::string* state);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_HEALTH_CHECK_H_
