#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/commands/commands.h"
#include "client/error_details.h"
#include "client/format.h"

namespace sinq::client {
namespace {

absl::Status Outcome(const v1::Job& job) {
  const std::string name = absl::StrCat("Job ", job.job_id());
  switch (job.state()) {
    case v1::JOB_STATE_SUCCEEDED:
      return absl::OkStatus();
    case v1::JOB_STATE_CANCELLED:
      return WithReason(absl::AbortedError(absl::StrCat(name, " was cancelled.")), "CANCELLED");
    case v1::JOB_STATE_EXPIRED:
      return WithReason(absl::AbortedError(absl::StrCat(name, " expired.")), "EXPIRED");
    case v1::JOB_STATE_FAILED:
      // Aborted whatever the cause was: the exit code says "the job failed", the text says why.
      return WithReason(absl::AbortedError(absl::StrCat(name, " failed (", job.error().code(),
                                                        "): ", job.error().message())),
                        job.error().reason());
    default:
      return absl::InternalError(
          absl::StrCat(name, " ended its events in a state that is not final."));
  }
}

ProgressSample ToSample(const v1::JobEvent& event) {
  const v1::JobProgress& p = event.progress();
  const bool queued = event.state() == v1::JOB_STATE_QUEUED;
  return {queued ? "queued" : StageName(p.stage()), p.bytes_done(), p.bytes_total(),
          p.tensors_done(), p.tensors_total()};
}

std::string HowToGoOn(const std::string& job_id, int64_t last) {
  return absl::StrCat("Job ", job_id, " goes on without you. Follow it with: sinqctl watch ",
                      job_id, last > 0 ? absl::StrCat(" --after ", last) : "");
}

}  // namespace

std::string ResultText(const v1::Job& job) {
  Table table({"RESULT", job.output_uri()});
  table.Add({"size", FormatBytes(job.progress().output_bytes())});
  if (job.progress().effective_bits() > 0) {
    table.Add({"bits per weight", absl::StrFormat("%.3f", job.progress().effective_bits())});
  } else {
    table.Add({"quantized", "no tensor: sinqctl plan with the same arguments gives the reasons"});
  }
  if (job.has_start_time() && job.has_end_time()) {
    const absl::Duration took =
        absl::Seconds(job.end_time().seconds() - job.start_time().seconds()) +
        absl::Nanoseconds(job.end_time().nanos() - job.start_time().nanos());
    table.Add({"took", DurationText(took)});
  }
  table.Add({"check it with", absl::StrCat("sinqctl verify ", job.output_uri())});
  return table.Render();
}

absl::Status WaitForJob(CommandContext& context, const std::string& job_id, int64_t after_sequence,
                        bool patient, const std::function<void(const v1::JobEvent&)>& on_event,
                        v1::Job& job) {
  int64_t last = after_sequence;
  absl::Status status =
      context.client.WatchJob(job_id, after_sequence, patient, [&](const v1::JobEvent& event) {
        last = event.sequence();
        context.progress.Update(ToSample(event), absl::Now());
        if (on_event) on_event(event);
      });
  context.progress.Finish();
  if (absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) {
    // Said even with -q: without it the user could not find the job again.
    context.err << HowToGoOn(job_id, last) << std::endl;
  }
  if (!status.ok()) return status;
  auto final_job = context.client.GetJob(job_id);
  if (!final_job.ok()) return final_job.status();
  job = *std::move(final_job);
  return Outcome(job);
}

absl::Status RunWatch(CommandContext& context, const WatchFlags& flags) {
  // Found out first, so that a wrong id or an absent server is reported at once and not waited for.
  const auto known = context.client.GetJob(flags.job_id);
  if (!known.ok()) return known.status();
  absl::Status printed;
  v1::Job job;
  const absl::Status status = WaitForJob(
      context, flags.job_id, flags.after, /*patient=*/true,
      [&](const v1::JobEvent& event) {
        if (context.output.format() == OutputFormat::kJson) {
          printed.Update(context.output.Print(event, "", "", /*pretty=*/false));
        }
      },
      job);
  if (!status.ok()) return status;
  if (!printed.ok() || context.output.format() == OutputFormat::kJson) return printed;
  return context.output.Print(job, ResultText(job), job.job_id());
}

}  // namespace sinq::client
