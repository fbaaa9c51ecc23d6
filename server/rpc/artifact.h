// Files of a finished job's output, as its manifest lists them.
#ifndef SINQ_SERVER_RPC_ARTIFACT_H_
#define SINQ_SERVER_RPC_ARTIFACT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/rpc/service_context.h"

namespace sinq {

struct ArtifactInfo {
  std::string file;
  uint64_t size_bytes = 0;
  std::string sha256;  // hex; empty for the manifest itself
};

// NotFound/kJobNotFound, or FailedPrecondition while the job has no output.
absl::StatusOr<std::vector<ArtifactInfo>> ListArtifactsOf(const ServiceContext& context,
                                                          const std::string& job_id);
// NotFound/kArtifactNotFound for a name that the manifest does not list.
absl::StatusOr<std::unique_ptr<File>> OpenArtifact(const ServiceContext& context,
                                                   const std::string& job_id,
                                                   const std::string& file);

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_ARTIFACT_H_
