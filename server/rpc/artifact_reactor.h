// ReadArtifact: one chunk in flight, read when the one before is sent.
#ifndef SINQ_SERVER_RPC_ARTIFACT_REACTOR_H_
#define SINQ_SERVER_RPC_ARTIFACT_REACTOR_H_

#include <memory>
#include <string>

#include "server/rpc/service_context.h"
#include "server/rpc/unary.h"
#include "sinq/v1/tensor_service.grpc.pb.h"

namespace sinq {

// Every step runs on the handlers' executor; steps never overlap. Deletes itself when gRPC is done.
class ArtifactReactor final : public grpc::ServerWriteReactor<sinq::v1::ReadArtifactResponse> {
 public:
  ArtifactReactor(ServiceContext& context, const sinq::v1::ReadArtifactRequest& request);
  void OnWriteDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  void Open();
  absl::Status OpenFile();
  void SendNext();
  void End(const absl::Status& status);

  ServiceContext& context_;
  const std::string job_id_, file_name_;
  const int64_t limit_bytes_;
  const SteadyTime begin_ = std::chrono::steady_clock::now();
  std::unique_ptr<File> file_;
  uint64_t size_bytes_ = 0, at_, end_ = 0;
  sinq::v1::ReadArtifactResponse response_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_ARTIFACT_REACTOR_H_
