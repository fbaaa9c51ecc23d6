#include "server/rpc/convert.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "server/base/error.h"

namespace sinq {
namespace {

template <class Text>
std::string OrDefault(const Text& value, const std::string& fallback) {
  return value.empty() ? fallback : std::string(value);
}

sinq::v1::JobState ToProto(JobState state) {
  switch (state) {
    case JobState::kQueued:
      return sinq::v1::JOB_STATE_QUEUED;
    case JobState::kRunning:
      return sinq::v1::JOB_STATE_RUNNING;
    case JobState::kSucceeded:
      return sinq::v1::JOB_STATE_SUCCEEDED;
    case JobState::kFailed:
      return sinq::v1::JOB_STATE_FAILED;
    case JobState::kCancelled:
      return sinq::v1::JOB_STATE_CANCELLED;
    case JobState::kExpired:
      return sinq::v1::JOB_STATE_EXPIRED;
  }
  return sinq::v1::JOB_STATE_UNSPECIFIED;
}

sinq::v1::JobStage ToProto(JobStage stage) {
  switch (stage) {
    case JobStage::kNone:
      return sinq::v1::JOB_STAGE_UNSPECIFIED;
    case JobStage::kPlan:
      return sinq::v1::JOB_STAGE_PLAN;
    case JobStage::kMeasure:
      return sinq::v1::JOB_STAGE_MEASURE;
    case JobStage::kQuantize:
      return sinq::v1::JOB_STAGE_QUANTIZE;
    case JobStage::kCommit:
      return sinq::v1::JOB_STAGE_COMMIT;
    case JobStage::kDone:
      return sinq::v1::JOB_STAGE_DONE;
  }
  return sinq::v1::JOB_STAGE_UNSPECIFIED;
}

void FillProgress(const JobProgress& progress, JobState state, sinq::v1::JobProgress* out) {
  // Between the lease and the worker's first word.
  const bool starting = state == JobState::kRunning && progress.stage == JobStage::kNone;
  out->set_stage(ToProto(starting ? JobStage::kPlan : progress.stage));
  out->set_tensors_done(static_cast<int64_t>(progress.tensors_done));
  out->set_tensors_total(static_cast<int64_t>(progress.tensors_total));
  out->set_bytes_done(static_cast<int64_t>(progress.bytes_done));
  out->set_bytes_total(static_cast<int64_t>(progress.bytes_total));
  out->set_output_bytes(static_cast<int64_t>(progress.output_bytes));
  out->set_effective_bits(progress.effective_bits);
}

void FillError(const JobError& error, sinq::v1::JobError* out) {
  out->set_code(error.code);
  out->set_reason(std::string(ReasonName(error.reason)));
  out->set_message(error.message);
}

void FillTime(absl::Time time, google::protobuf::Timestamp* out) {
  const absl::Duration since_epoch = time - absl::UnixEpoch();
  const int64_t seconds = absl::ToUnixSeconds(time);
  out->set_seconds(seconds);
  out->set_nanos(
      static_cast<int32_t>((since_epoch - absl::Seconds(seconds)) / absl::Nanoseconds(1)));
}

bool IsSet(absl::Time time) {
  return time != absl::InfinitePast() && time != absl::InfiniteFuture();
}

sinq::v1::TensorAction ToProto(TensorAction action) {
  switch (action) {
    case TensorAction::kQuantize:
      return sinq::v1::TENSOR_ACTION_QUANTIZE;
    case TensorAction::kCopy:
      return sinq::v1::TENSOR_ACTION_COPY;
    case TensorAction::kDrop:
      return sinq::v1::TENSOR_ACTION_DROP;
    case TensorAction::kFold:
      return sinq::v1::TENSOR_ACTION_FOLD;
  }
  return sinq::v1::TENSOR_ACTION_UNSPECIFIED;
}

void FillRule(const RecipeRule& rule, sinq::v1::RecipeRule* out) {
  out->set_pattern(rule.pattern);
  out->set_bits(rule.bits);
  out->set_group_size(rule.group_size);
  if (rule.symmetric) out->set_symmetric(*rule.symmetric);
  out->set_method(rule.method);
  if (!rule.quantize) out->set_quantize(false);
}

RecipeRule ToRule(const sinq::v1::RecipeRule& rule) {
  RecipeRule out;
  out.pattern = rule.pattern();
  out.quantize = !rule.has_quantize() || rule.quantize();
  out.bits = rule.bits();
  out.group_size = rule.group_size();
  if (rule.has_symmetric()) out.symmetric = rule.symmetric();
  out.method = rule.method();
  return out;
}

void FillRecipe(const JobSpec& spec, sinq::v1::Recipe* out) {
  out->set_method(spec.method);
  out->set_profile(spec.profile);
  out->set_format(spec.format);
  out->set_bits(spec.bits);
  out->set_group_size(spec.group_size);
  out->set_symmetric(spec.symmetric);
  out->set_aux(spec.aux);
  out->set_tiling(spec.tiling);
  out->set_fold(spec.fold);
  out->set_target_bits_per_weight(spec.target_bits_per_weight);
  out->set_target_size_bytes(static_cast<int64_t>(spec.target_size_bytes));
  out->set_activations_uri(spec.activations_uri);
  out->set_gguf_template_uri(spec.gguf_template_uri);
  for (const RecipeRule& rule : spec.rules) FillRule(rule, out->add_rules());
  for (const std::string& text : spec.include) out->add_include(text);
  for (const std::string& text : spec.exclude) out->add_exclude(text);
}

// A stream has one recipe for all of its tensors and sees them one by one.
absl::Status CheckStreamable(const JobSpec& spec) {
  absl::string_view field;
  if (spec.bits == 0) field = "bits 0 (chosen under a target)";
  if (!spec.rules.empty()) field = "rules";
  if (!spec.activations_uri.empty()) field = "activations_uri";
  if (field.empty()) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("A stream of tensors cannot have ", field,
                                "; submit a job for that, or leave it out."),
                   {{"field", "recipe"}});
}

}  // namespace

JobSpec ToJobSpec(const std::string& source_uri, const std::string& output_uri,
                  const sinq::v1::Recipe& recipe) {
  JobSpec spec;
  spec.source_uri = source_uri;
  spec.output_uri = output_uri;
  spec.method = OrDefault(recipe.method(), spec.method);
  spec.profile = OrDefault(recipe.profile(), spec.profile);
  spec.format = OrDefault(recipe.format(), spec.format);
  spec.aux = OrDefault(recipe.aux(), DefaultAux(spec.format));
  spec.target_bits_per_weight = recipe.target_bits_per_weight();
  // A negative one becomes one above the limit, and is refused as such.
  spec.target_size_bytes = static_cast<uint64_t>(recipe.target_size_bytes());
  const bool has_target = spec.target_bits_per_weight != 0 || spec.target_size_bytes != 0;
  spec.bits = recipe.bits() != 0 || has_target ? recipe.bits() : DefaultBits(spec.method);
  spec.group_size = recipe.group_size() != 0 ? recipe.group_size() : DefaultGroupSize(spec.format);
  spec.symmetric =
      recipe.has_symmetric() ? recipe.symmetric() : DefaultSymmetric(spec.format, spec.bits);
  spec.tiling = OrDefault(recipe.tiling(), spec.tiling);
  spec.fold = OrDefault(recipe.fold(), spec.fold);
  spec.activations_uri = recipe.activations_uri();
  spec.gguf_template_uri = recipe.gguf_template_uri();
  for (const sinq::v1::RecipeRule& rule : recipe.rules()) spec.rules.push_back(ToRule(rule));
  spec.include.assign(recipe.include().begin(), recipe.include().end());
  spec.exclude.assign(recipe.exclude().begin(), recipe.exclude().end());
  return spec;
}

absl::StatusOr<kernels::QuantParams> ToQuantParams(const sinq::v1::Recipe& recipe) {
  sinq::v1::Recipe streamed = recipe;
  streamed.set_format("sinq");
  const JobSpec spec = ToJobSpec("/stream", "", streamed);
  if (absl::Status status = ValidateJobSpec(spec, /*needs_output=*/false); !status.ok())
    return status;
  if (absl::Status status = CheckStreamable(spec); !status.ok()) return status;
  kernels::QuantParams params;
  kernels::ParseMethod(spec.method, &params.method);
  kernels::ParseProfile(spec.profile, &params.profile);
  kernels::ParseAux(spec.aux, &params.aux);
  params.bits = spec.bits;
  params.group_size = spec.group_size;
  params.symmetric = spec.symmetric;
  kernels::ParseTiling(spec.tiling, &params.tiling);
  if (absl::Status status = kernels::Validate(params); !status.ok()) {
    return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                     absl::StrCat(status.message(), "."), {{"field", "recipe"}});
  }
  return params;
}

absl::StatusOr<std::vector<JobState>> ParseListFilter(const std::string& filter) {
  std::vector<JobState> states;
  if (filter.empty()) return states;
  absl::string_view rest = filter;
  bool known = absl::ConsumePrefix(&rest, "state=");
  for (const absl::string_view name : absl::StrSplit(rest, '|')) {
    JobState state;
    known = known && ParseJobState(name, &state);
    if (known) states.push_back(state);
  }
  if (known) return states;
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("filter must be \"state=\" and state names joined by \"|\", as in "
                                "\"state=QUEUED|RUNNING\"; got \"",
                                filter.substr(0, 100), "\"."),
                   {{"field", "filter"}});
}

sinq::v1::Job ToProto(const Job& job) {
  sinq::v1::Job out;
  out.set_job_id(job.id);
  out.set_request_id(job.request_id);
  out.set_source_uri(job.spec.source_uri);
  out.set_output_uri(job.spec.output_uri);
  FillRecipe(job.spec, out.mutable_recipe());
  out.set_state(ToProto(job.state));
  FillProgress(job.progress, job.state, out.mutable_progress());
  if (!job.error.code.empty()) FillError(job.error, out.mutable_error());
  out.set_cancel_requested(job.cancel_requested);
  out.set_attempt(job.attempt);
  out.set_last_event(static_cast<int64_t>(job.last_event));
  if (IsSet(job.create_time)) FillTime(job.create_time, out.mutable_create_time());
  if (IsSet(job.start_time)) FillTime(job.start_time, out.mutable_start_time());
  if (IsSet(job.end_time)) FillTime(job.end_time, out.mutable_end_time());
  return out;
}

sinq::v1::JobEvent ToProto(const JobEvent& event) {
  sinq::v1::JobEvent out;
  out.set_sequence(static_cast<int64_t>(event.sequence));
  FillTime(event.time, out.mutable_event_time());
  out.set_state(ToProto(event.state));
  FillProgress(event.progress, event.state, out.mutable_progress());
  out.mutable_progress()->set_tensor(event.tensor);
  if (!event.error.code.empty()) FillError(event.error, out.mutable_error());
  return out;
}

sinq::v1::PlannedTensor ToProto(const PlannedTensor& tensor, const Plan& plan) {
  sinq::v1::PlannedTensor out;
  out.set_name(tensor.source.name);
  out.set_dtype(tensor.source.dtype);
  for (const int64_t extent : tensor.source.shape) out.add_shape(extent);
  out.set_action(ToProto(tensor.action));
  out.set_reason(tensor.reason);
  if (tensor.action == TensorAction::kQuantize) {
    out.set_bits(tensor.params.bits);
    out.set_group_size(tensor.params.group_size);
    out.set_aux(std::string(kernels::AuxName(tensor.params.aux)));
    out.set_method(std::string(kernels::MethodName(tensor.params.method)));
    out.set_symmetric(tensor.params.symmetric);
  }
  for (const OutputRange& range : tensor.outputs) {
    sinq::v1::OutputRange* to = out.add_outputs();
    to->set_tensor(range.tensor.name);
    to->set_file(plan.files[static_cast<size_t>(range.file_index)].name);
    to->set_offset_bytes(static_cast<int64_t>(range.offset));
    to->set_size_bytes(static_cast<int64_t>(range.tensor.size_bytes));
  }
  return out;
}

}  // namespace sinq
