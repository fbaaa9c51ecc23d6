// The gRPC endpoint: both services, grpc.health.v1 and reflection, within the limits of limits.h.
#ifndef SINQ_SERVER_RPC_GRPC_SERVER_H_
#define SINQ_SERVER_RPC_GRPC_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/listen_address.h"
#include "server/rpc/quantization_service.h"
#include "server/rpc/service_context.h"
#include "server/rpc/tensor_service.h"

namespace sinq {

// Thread-safe. `context` must outlive it.
class GrpcServer {
 public:
  // Listens and serves. Unavailable if the address cannot be bound; a port that another process
  // listens on is refused, never shared.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const ListenAddress& address,
                                                           ServiceContext& context);
  // Shuts down at once if Shutdown was not called.
  ~GrpcServer();

  int port() const { return port_; }
  // Health turns to NOT_SERVING for every name, for good; calls are still served.
  void StopServing();
  // Takes no more calls, waits for open ones at most `grace`, then cancels them. Their memory is
  // given back when this returns.
  void Shutdown(absl::Duration grace);

 private:
  explicit GrpcServer(ServiceContext& context)
      : context_(context),
        workers_(context.workers),
        quantization_(context),
        tensors_(context) {}
  // Each worker as the service "device/NAME"; the server itself serves as long as the CPU is there.
  void ServeHealth();

  ServiceContext& context_;
  WorkerPool& workers_;
  QuantizationServiceImpl quantization_;
  TensorServiceImpl tensors_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_GRPC_SERVER_H_
