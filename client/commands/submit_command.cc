#include "absl/strings/str_cat.h"
#include "client/commands/commands.h"
#include "client/commands/request.h"

namespace sinq::client {
namespace {

absl::StatusOr<v1::CreateJobRequest> MakeRequest(const SubmitFlags& flags) {
  auto recipe = MakeRecipe(flags.recipe);
  if (!recipe.ok()) return recipe.status();
  v1::CreateJobRequest request;
  // Without a key a repeated attempt could queue the job twice.
  request.set_request_id(flags.request_id.empty() ? NewRequestId() : flags.request_id);
  request.set_source_uri(AbsoluteUri(flags.source));
  request.set_output_uri(AbsoluteUri(flags.output));
  *request.mutable_recipe() = *std::move(recipe);
  return request;
}

}  // namespace

absl::Status RunSubmit(CommandContext& context, const SubmitFlags& flags) {
  const auto request = MakeRequest(flags);
  if (!request.ok()) return request.status();
  const auto created = context.client.CreateJob(*request);
  if (!created.ok()) return created.status();
  const std::string id = created->job().job_id();
  // The id comes first, so that a script has it whatever happens next.
  if (absl::Status status = context.output.Print(*created, id, id); !status.ok()) return status;
  if (created->replayed()) {
    context.Note(
        "This request id was used before with the same request: this is the job of that time.");
  }
  if (!flags.wait) {
    context.Note(absl::StrCat("Queued. Follow it with: sinqctl watch ", id));
    return absl::OkStatus();
  }
  v1::Job job;
  absl::Status status = WaitForJob(context, id, 0, /*patient=*/true, nullptr, job);
  if (!status.ok()) return status;
  return context.output.Print(job, ResultText(job), "");
}

absl::Status RunPlan(CommandContext& context, const SubmitFlags& flags) {
  auto recipe = MakeRecipe(flags.recipe);
  if (!recipe.ok()) return recipe.status();
  v1::PlanJobRequest request;
  request.set_source_uri(AbsoluteUri(flags.source));
  request.set_output_uri(AbsoluteUri(flags.output));
  *request.mutable_recipe() = *std::move(recipe);
  const auto plan = context.client.PlanJob(request);
  if (!plan.ok()) return plan.status();
  std::string names;
  for (const v1::PlannedTensor& tensor : plan->tensors()) {
    if (tensor.action() == v1::TENSOR_ACTION_QUANTIZE) absl::StrAppend(&names, tensor.name(), "\n");
  }
  return context.output.Print(*plan, PlanText(*plan), names);
}

}  // namespace sinq::client
