// Messages to domain types and back. Total functions: what a client sends is only checked by the
// domain.
#ifndef SINQ_SERVER_RPC_CONVERT_H_
#define SINQ_SERVER_RPC_CONVERT_H_

#include <string>

#include "absl/status/statusor.h"
#include "kernels/quant_params.h"
#include "server/job/job.h"
#include "server/job/job_store.h"
#include "server/plan/plan.h"
#include "sinq/v1/quantization_service.pb.h"
#include "sinq/v1/tensor_service.pb.h"

namespace sinq {

// Unset recipe fields take their defaults.
JobSpec ToJobSpec(const std::string& source_uri, const std::string& output_uri,
                  const sinq::v1::Recipe& recipe);
// InvalidArgument for an unknown method, profile or aux, or a width that does not exist.
absl::StatusOr<kernels::QuantParams> ToQuantParams(const sinq::v1::Recipe& recipe);
// "state=QUEUED|RUNNING" -> states; InvalidArgument otherwise.
absl::StatusOr<std::vector<JobState>> ParseListFilter(const std::string& filter);

sinq::v1::Job ToProto(const Job& job);
sinq::v1::JobEvent ToProto(const JobEvent& event);
sinq::v1::PlannedTensor ToProto(const PlannedTensor& tensor, const Plan& plan);

}  // namespace sinq

#endif  // SINQ_SERVER_RPC_CONVERT_H_
