// Runs a unary handler off gRPC's threads and counts it.
#ifndef SINQ_SERVER_RPC_UNARY_H_
#define SINQ_SERVER_RPC_UNARY_H_

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/service_context.h"

namespace sinq {

using SteadyTime = std::chrono::steady_clock::time_point;

inline void ObserveRpc(Metrics& metrics, const std::string& method, grpc::StatusCode code,
                       SteadyTime begin) {
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  metrics.Observe("sinq_rpc_duration_seconds", seconds,
                  {{"method", method}, {"code", GrpcCodeName(code)}});
}

// No request may take the server down.
template <class Handler>
absl::Status Guarded(const Handler& handler) {
  try {
    return handler();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("The server ran out of memory; try again later.");
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("Unexpected error: ", error.what()));
  }
}

// `handler`: absl::Status(), filling the response that it captured. Request and response live until
// the call is finished.
template <class Handler>
grpc::ServerUnaryReactor* RunUnary(ServiceContext& context, grpc::CallbackServerContext* call,
                                   const char* method, Handler handler) {
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  context.handlers.Run([&context, reactor, method, begin = std::chrono::steady_clock::now(),
                        handler = std::move(handler)] {
    const grpc::Status status = ToGrpcStatus(Guarded(handler));
    ObserveRpc(context.metrics, method, status.error_code(), begin);
    reactor->Finish(status);
  });
  return reactor;
}

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_UNARY_H_
