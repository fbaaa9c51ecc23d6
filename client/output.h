// Results on standard output: the API's messages as JSON, or the same as tables for people.
#ifndef SINQ_CLIENT_OUTPUT_H_
#define SINQ_CLIENT_OUTPUT_H_

#include <google/protobuf/message.h>

#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/flags.h"
#include "sinq/v1/quantization_service.pb.h"
#include "sinq/v1/tensor_service.pb.h"

namespace sinq::client {

// Field for field, with the names of the .proto files and unset fields included. `pretty`: over
// several lines.
absl::StatusOr<std::string> MessageJson(const google::protobuf::Message& message, bool pretty);

// "RUNNING", "quantize", "COPY".
std::string StateName(v1::JobState state);
std::string StageName(v1::JobStage stage);
std::string ActionName(v1::TensorAction action);

std::string JobText(const v1::Job& job);
std::string JobListText(const v1::ListJobsResponse& list);
std::string PlanText(const v1::PlanJobResponse& plan);
std::string ArtifactsText(const v1::ListArtifactsResponse& list);
std::string CapabilitiesText(const v1::GetCapabilitiesResponse& capabilities);
// One line for an event.
std::string EventText(const v1::JobEvent& event);

// Prints a result in the asked format. Not thread-safe.
class Output {
 public:
  Output(std::ostream& out, OutputFormat format) : out_(out), format_(format) {}
  OutputFormat format() const { return format_; }
  // The message as JSON, `table` or `name` (each with or without a final newline), by format;
  // flushed.
  absl::Status Print(const google::protobuf::Message& message, absl::string_view table,
                     absl::string_view name, bool pretty = true);
  absl::Status PrintText(absl::string_view text);

 private:
  std::ostream& out_;
  const OutputFormat format_;
};

}  // namespace sinq::client

#endif  // SINQ_CLIENT_OUTPUT_H_
