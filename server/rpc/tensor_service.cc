#include "server/rpc/tensor_service.h"

#include "server/rpc/artifact.h"
#include "server/rpc/artifact_reactor.h"
#include "server/rpc/tensor_stream_reactor.h"
#include "server/rpc/unary.h"

namespace sinq {

grpc::ServerBidiReactor<sinq::v1::QuantizeTensorsRequest, sinq::v1::QuantizeTensorsResponse>*
TensorServiceImpl::QuantizeTensors(grpc::CallbackServerContext*) {
  return TensorStreamReactor::Start(context_);
}

grpc::ServerWriteReactor<sinq::v1::ReadArtifactResponse>* TensorServiceImpl::ReadArtifact(
    grpc::CallbackServerContext*, const sinq::v1::ReadArtifactRequest* request) {
  return new ArtifactReactor(context_, *request);
}

grpc::ServerUnaryReactor* TensorServiceImpl::ListArtifacts(
    grpc::CallbackServerContext* call, const sinq::v1::ListArtifactsRequest* request,
    sinq::v1::ListArtifactsResponse* response) {
  return RunUnary(context_, call, "ListArtifacts", [this, request, response]() -> absl::Status {
    const absl::StatusOr<std::vector<ArtifactInfo>> files =
        ListArtifactsOf(context_, request->job_id());
    if (!files.ok()) return files.status();
    for (const ArtifactInfo& file : *files) {
      sinq::v1::Artifact* out = response->add_artifacts();
      out->set_file(file.file);
      out->set_size_bytes(static_cast<int64_t>(file.size_bytes));
      out->set_sha256(file.sha256);
    }
    return absl::OkStatus();
  });
}

}  // namespace sinq
