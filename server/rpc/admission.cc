#include "server/rpc/admission.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/plan/width_plan.h"
#include "server/rpc/dry_run_survey.h"
#include "server/sink/sink.h"

namespace sinq {

absl::Status CheckRequestId(absl::string_view request_id) {
  const bool plain = std::all_of(request_id.begin(), request_id.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  });
  if (plain && request_id.size() <= kMaxRequestIdBytes) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("request_id must be at most ", kMaxRequestIdBytes,
                                " letters, digits, \".\", \"_\" or \"-\"."),
                   {{"field", "request_id"}, {"limit", absl::StrCat(kMaxRequestIdBytes)}});
}

namespace {

absl::StatusOr<PlanInputs> Admit(const ServiceContext& context, const JobSpec& spec,
                                 bool needs_output) {
  if (absl::Status status = ValidateJobSpec(spec, needs_output); !status.ok()) return status;
  if (!spec.output_uri.empty()) {
    const absl::StatusOr<ResolvedPath> output = context.files.Resolve(spec.output_uri);
    if (!output.ok()) return Annotate(output.status(), "output_uri");
    if (absl::Status status = CheckLocalDestination(*output); !status.ok()) return status;
  }
  return OpenPlanInputs(spec, context.files);
}

PlanOptions OptionsFor(const ServiceContext& context, const PlanInputs& inputs) {
  return {context.budget.budget_bytes(), context.workers.UsefulTasks(), inputs.activations.get(),
          nullptr, inputs.gguf_template.get()};
}

}  // namespace

absl::StatusOr<Plan> PlanFor(const ServiceContext& context, const JobSpec& spec,
                             bool needs_output) {
  const absl::StatusOr<PlanInputs> inputs = Admit(context, spec, needs_output);
  if (!inputs.ok()) return inputs.status();
  return MakePlan(spec, *inputs->source, *inputs->exporter, OptionsFor(context, *inputs));
}

absl::StatusOr<DryRun> DryRunFor(ServiceContext& context, const JobSpec& spec,
                                 absl::FunctionRef<bool()> cancelled) {
  const absl::StatusOr<PlanInputs> inputs = Admit(context, spec, /*needs_output=*/false);
  if (!inputs.ok()) return inputs.status();
  const PlanOptions options = OptionsFor(context, *inputs);
  absl::StatusOr<Plan> open = MakePlan(spec, *inputs->source, *inputs->exporter, options);
  if (!open.ok()) return open.status();
  if (open->width_groups.empty()) return DryRun{*std::move(open), ""};
  const uint64_t bytes = SurveyBytes(*open);
  if (bytes > kMaxPlanSurveyBytes) {
    return DryRun{*std::move(open),
                  absl::StrCat("The bits are chosen when the job runs: ", bytes,
                               " bytes of weights are to be measured for it, more than the ",
                               kMaxPlanSurveyBytes,
                               " (max_plan_survey_bytes) that a dry run measures. Sizes and bits "
                               "shown are of the narrowest widths.")};
  }
  const absl::StatusOr<WidthErrors> errors =
      SurveyForDryRun(context, *open, *inputs->source, cancelled);
  if (!errors.ok()) return errors.status();
  absl::StatusOr<Plan> plan =
      PlanWidths(spec, *inputs->source, *inputs->exporter, options, *errors);
  if (!plan.ok()) return plan.status();
  return DryRun{*std::move(plan), ""};
}

}  // namespace sinq
