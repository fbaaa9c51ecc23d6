// The commands. Each prints its result and returns why it failed; the process's exit code follows
// from the status.
#ifndef SINQ_CLIENT_COMMANDS_COMMANDS_H_
#define SINQ_CLIENT_COMMANDS_COMMANDS_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "client/commands/context.h"
#include "client/flags.h"

namespace CLI {
class App;
}

namespace sinq::client {

// submit_command.cc
absl::Status RunSubmit(CommandContext& context, const SubmitFlags& flags);
absl::Status RunPlan(CommandContext& context, const SubmitFlags& flags);
// watch_command.cc
absl::Status RunWatch(CommandContext& context, const WatchFlags& flags);
// Follows a job to its end with progress on standard error. OK when it succeeded; otherwise why
// not. `on_event` may be null.
absl::Status WaitForJob(CommandContext& context, const std::string& job_id, int64_t after_sequence,
                        bool patient, const std::function<void(const v1::JobEvent&)>& on_event,
                        v1::Job& job);
// Where the result is, its size and its bits per weight.
std::string ResultText(const v1::Job& job);
// job_commands.cc
absl::Status RunGet(CommandContext& context, const std::string& job_id);
absl::Status RunList(CommandContext& context, const ListFlags& flags);
absl::Status RunCancel(CommandContext& context, const std::string& job_id);
absl::Status RunDelete(CommandContext& context, const std::string& job_id);
// artifact_commands.cc, download_command.cc, verify_command.cc, quantize_command.cc
absl::Status RunArtifacts(CommandContext& context, const std::string& job_id);
absl::Status RunDownload(CommandContext& context, const DownloadFlags& flags);
absl::Status RunVerify(CommandContext& context, const std::string& directory);
absl::Status RunQuantize(CommandContext& context, const QuantizeFlags& flags);
// report_command.cc
absl::Status RunReport(CommandContext& context, const ReportFlags& flags);
// server_commands.cc
absl::Status RunCapabilities(CommandContext& context);
absl::Status RunHealth(CommandContext& context, const std::string& service);
absl::Status RunVersion(CommandContext& context);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_COMMANDS_COMMANDS_H_
