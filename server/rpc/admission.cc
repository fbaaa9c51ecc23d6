#include "server/rpc/admission.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/export/exporter.h"
#include "server/sink/sink.h"
#include "server/source/model_source.h"

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

absl::StatusOr<Plan> PlanFor(const ServiceContext& context, const JobSpec& spec,
                             bool needs_output) {
  if (absl::Status status = ValidateJobSpec(spec, needs_output); !status.ok()) return status;
  if (!spec.output_uri.empty()) {
    const absl::StatusOr<ResolvedPath> output = context.files.Resolve(spec.output_uri);
    if (!output.ok()) return Annotate(output.status(), "output_uri");
    if (absl::Status status = CheckLocalDestination(*output); !status.ok()) return status;
  }
  const absl::StatusOr<ResolvedPath> path = context.files.Resolve(spec.source_uri);
  if (!path.ok()) return Annotate(path.status(), "source_uri");
  const absl::StatusOr<std::unique_ptr<ModelSource>> source = OpenLocalSource(*path);
  if (!source.ok()) return source.status();
  const absl::StatusOr<std::unique_ptr<Exporter>> exporter = MakeExporter(spec.format);
  if (!exporter.ok()) return exporter.status();
  return MakePlan(spec, **source, **exporter,
                  {context.budget.budget_bytes(), context.workers.UsefulTasks()});
}

}  // namespace sinq
