#include "server/plan/plan.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/error.h"

namespace sinq {

absl::string_view ActionName(TensorAction action) {
  switch (action) {
    case TensorAction::kQuantize:
      return "quantize";
    case TensorAction::kCopy:
      return "copy";
    case TensorAction::kDrop:
      return "drop";
    case TensorAction::kFold:
      return "fold";
  }
  return "";
}

namespace {

absl::Status OpenActivations(const JobSpec& spec, const FileSystem& files, PlanInputs& inputs) {
  if (spec.activations_uri.empty()) return absl::OkStatus();
  const absl::StatusOr<ResolvedPath> path = files.Resolve(spec.activations_uri);
  if (!path.ok()) return Annotate(path.status(), "activations_uri");
  absl::StatusOr<std::unique_ptr<ActivationFile>> activations = ActivationFile::Open(*path);
  if (!activations.ok()) return activations.status();
  inputs.activations = *std::move(activations);
  return absl::OkStatus();
}

absl::Status OpenTemplate(const JobSpec& spec, const FileSystem& files, PlanInputs& inputs) {
  if (!inputs.exporter->PatchesTemplate()) return absl::OkStatus();
  const absl::StatusOr<ResolvedPath> path = files.Resolve(spec.gguf_template_uri);
  if (!path.ok()) return Annotate(path.status(), "gguf_template_uri");
  absl::StatusOr<std::unique_ptr<GgufTemplate>> opened = GgufTemplate::Open(*path);
  if (!opened.ok()) return opened.status();
  inputs.gguf_template = *std::move(opened);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PlanInputs> OpenPlanInputs(const JobSpec& spec, const FileSystem& files) {
  PlanInputs inputs;
  const absl::StatusOr<ResolvedPath> path = files.Resolve(spec.source_uri);
  if (!path.ok()) return Annotate(path.status(), "source_uri");
  absl::StatusOr<std::unique_ptr<ModelSource>> source = OpenLocalSource(*path);
  if (!source.ok()) return source.status();
  inputs.source = *std::move(source);
  absl::StatusOr<std::unique_ptr<Exporter>> exporter = MakeExporter(spec.format);
  if (!exporter.ok()) return exporter.status();
  inputs.exporter = *std::move(exporter);
  if (absl::Status status = OpenActivations(spec, files, inputs); !status.ok()) return status;
  if (absl::Status status = OpenTemplate(spec, files, inputs); !status.ok()) return status;
  return inputs;
}

bool HasUnit(Phase phase, const PlannedTensor& tensor) {
  switch (phase) {
    case Phase::kWidths:
      return !tensor.candidates.empty();
    case Phase::kMeasure:
      return tensor.measured;
    case Phase::kQuantize:
      return tensor.action != TensorAction::kDrop;
  }
  return false;
}

std::string UnitName(Phase phase, const PlannedTensor& tensor) {
  // No tensor's name has a control character.
  switch (phase) {
    case Phase::kWidths:
      return absl::StrCat("widths\t", tensor.source.name);
    case Phase::kMeasure:
      return absl::StrCat("measure\t", tensor.source.name);
    case Phase::kQuantize:
      return tensor.source.name;
  }
  return "";
}

}  // namespace sinq
