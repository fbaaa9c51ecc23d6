// sinq.v1.TensorService.
#ifndef SINQ_SERVER_RPC_TENSOR_SERVICE_H_
#define SINQ_SERVER_RPC_TENSOR_SERVICE_H_

#include "server/rpc/service_context.h"
#include "sinq/v1/tensor_service.grpc.pb.h"

namespace sinq {

class TensorServiceImpl final : public sinq::v1::TensorService::CallbackService {
 public:
  explicit TensorServiceImpl(ServiceContext& context) : context_(context) {}

  grpc::ServerBidiReactor<sinq::v1::QuantizeTensorsRequest, sinq::v1::QuantizeTensorsResponse>*
  QuantizeTensors(grpc::CallbackServerContext* call) override;
  grpc::ServerWriteReactor<sinq::v1::ReadArtifactResponse>* ReadArtifact(
      grpc::CallbackServerContext* call, const sinq::v1::ReadArtifactRequest* request) override;
  grpc::ServerUnaryReactor* ListArtifacts(grpc::CallbackServerContext* call,
                                          const sinq::v1::ListArtifactsRequest* request,
                                          sinq::v1::ListArtifactsResponse* response) override;

 private:
  ServiceContext& context_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_TENSOR_SERVICE_H_
