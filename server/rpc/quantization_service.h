// sinq.v1.QuantizationService: decode, one domain call, encode.
#ifndef SINQ_SERVER_RPC_QUANTIZATION_SERVICE_H_
#define SINQ_SERVER_RPC_QUANTIZATION_SERVICE_H_

#include "server/rpc/service_context.h"
#include "sinq/v1/quantization_service.grpc.pb.h"

namespace sinq {

class QuantizationServiceImpl final : public sinq::v1::QuantizationService::CallbackService {
 public:
  explicit QuantizationServiceImpl(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* CreateJob(grpc::CallbackServerContext* call,
                                      const sinq::v1::CreateJobRequest* request,
                                      sinq::v1::CreateJobResponse* response) override;
  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* call,
                                   const sinq::v1::GetJobRequest* request,
                                   sinq::v1::GetJobResponse* response) override;
  grpc::ServerUnaryReactor* ListJobs(grpc::CallbackServerContext* call,
                                     const sinq::v1::ListJobsRequest* request,
                                     sinq::v1::ListJobsResponse* response) override;
  grpc::ServerWriteReactor<sinq::v1::WatchJobResponse>* WatchJob(
      grpc::CallbackServerContext* call, const sinq::v1::WatchJobRequest* request) override;
  grpc::ServerUnaryReactor* CancelJob(grpc::CallbackServerContext* call,
                                      const sinq::v1::CancelJobRequest* request,
                                      sinq::v1::CancelJobResponse* response) override;
  grpc::ServerUnaryReactor* DeleteJob(grpc::CallbackServerContext* call,
                                      const sinq::v1::DeleteJobRequest* request,
                                      sinq::v1::DeleteJobResponse* response) override;
  grpc::ServerUnaryReactor* PlanJob(grpc::CallbackServerContext* call,
                                    const sinq::v1::PlanJobRequest* request,
                                    sinq::v1::PlanJobResponse* response) override;
  grpc::ServerUnaryReactor* GetCapabilities(grpc::CallbackServerContext* call,
                                            const sinq::v1::GetCapabilitiesRequest* request,
                                            sinq::v1::GetCapabilitiesResponse* response) override;

 private:
  ServiceContext& context_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_QUANTIZATION_SERVICE_H_
