#include "absl/strings/str_cat.h"
#include "client/commands/commands.h"

namespace sinq::client {

absl::Status RunGet(CommandContext& context, const std::string& job_id) {
  const auto job = context.client.GetJob(job_id);
  if (!job.ok()) return job.status();
  return context.output.Print(*job, JobText(*job), job->job_id());
}

absl::Status RunList(CommandContext& context, const ListFlags& flags) {
  v1::ListJobsRequest request;
  request.set_filter(flags.filter);
  request.set_page_size(flags.page_size);
  request.set_page_token(flags.page_token);
  const auto list = context.client.ListJobs(request);
  if (!list.ok()) return list.status();
  std::string ids;
  for (const v1::Job& job : list->jobs()) absl::StrAppend(&ids, job.job_id(), "\n");
  absl::Status status = context.output.Print(*list, JobListText(*list), ids);
  if (!list->next_page_token().empty()) {
    context.Note(absl::StrCat("More jobs: add --page-token ", list->next_page_token()));
  }
  return status;
}

absl::Status RunCancel(CommandContext& context, const std::string& job_id) {
  const auto response = context.client.CancelJob(job_id);
  if (!response.ok()) return response.status();
  const v1::Job& job = response->job();
  const bool pending = !IsFinal(job.state());
  return context.output.Print(*response,
                              absl::StrCat(job.job_id(), "  ", StateName(job.state()),
                                           pending ? " (cancel requested)" : ""),
                              job.job_id());
}

absl::Status RunDelete(CommandContext& context, const std::string& job_id) {
  if (absl::Status status = context.client.DeleteJob(job_id); !status.ok()) return status;
  return context.output.Print(v1::DeleteJobResponse(), absl::StrCat(job_id, "  deleted"), job_id);
}

}  // namespace sinq::client
