#include "server/job/job_codec.h"

#include <cstdint>

#include "nlohmann/json.hpp"
#include "server/base/limits.h"
#include "server/base/text.h"

namespace sinq {
namespace {

using nlohmann::json;

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

bool ReadCount(const json& object, const char* key, uint64_t* out) {
  const auto found = object.find(key);
  if (found == object.end()) return true;
  if (!found->is_number_unsigned()) return false;
  *out = found->get<uint64_t>();
  return true;
}

bool ReadText(const json& object, const char* key, std::string* out) {
  const auto found = object.find(key);
  if (found == object.end()) return true;
  if (!found->is_string()) return false;
  *out = found->get<std::string>();
  return true;
}

bool ReadStage(const json& object, JobStage* out) {
  std::string name;
  if (!ReadText(object, "stage", &name)) return false;
  for (int i = 0; i <= static_cast<int>(JobStage::kDone); ++i) {
    const JobStage stage = static_cast<JobStage>(i);
    if (JobStageName(stage) != name) continue;
    *out = stage;
    return true;
  }
  return false;
}

bool ReadBits(const json& object, double* out) {
  const auto found = object.find("effective_bits");
  if (found == object.end()) return true;
  // A non-finite number is dumped as null; it stands for "not known yet".
  if (found->is_number()) *out = found->get<double>();
  return found->is_number() || found->is_null();
}

}  // namespace

std::string EncodeProgress(const JobProgress& progress) {
  return Dump(json{{"stage", std::string(JobStageName(progress.stage))},
                   {"tensors_done", progress.tensors_done},
                   {"tensors_total", progress.tensors_total},
                   {"bytes_done", progress.bytes_done},
                   {"bytes_total", progress.bytes_total},
                   {"output_bytes", progress.output_bytes},
                   {"effective_bits", progress.effective_bits}});
}

std::string EncodeError(const JobError& error) {
  if (error.code.empty()) return "";
  return Dump(json{{"code", error.code},
                   {"reason", std::string(ReasonName(error.reason))},
                   {"message", PrintableText(error.message, kMaxErrorMessageBytes)}});
}

bool DecodeProgress(absl::string_view text, JobProgress* out) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  *out = JobProgress();
  return object.is_object() && ReadStage(object, &out->stage) &&
         ReadCount(object, "tensors_done", &out->tensors_done) &&
         ReadCount(object, "tensors_total", &out->tensors_total) &&
         ReadCount(object, "bytes_done", &out->bytes_done) &&
         ReadCount(object, "bytes_total", &out->bytes_total) &&
         ReadCount(object, "output_bytes", &out->output_bytes) &&
         ReadBits(object, &out->effective_bits);
}

bool DecodeError(absl::string_view text, JobError* out) {
  *out = JobError();
  if (text.empty()) return true;
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  std::string reason;
  if (!object.is_object() || !ReadText(object, "code", &out->code) ||
      !ReadText(object, "reason", &reason) || !ReadText(object, "message", &out->message)) {
    return false;
  }
  out->reason = ReasonFromName(reason);
  return true;
}

}  // namespace sinq
