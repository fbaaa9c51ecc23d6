#include "client/run.h"

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "client/commands/commands.h"
#include "client/completion.h"
#include "client/exit_code.h"
#include "client/flags.h"
#include "client/format.h"
#include "client/output.h"
#include "client/progress.h"

namespace sinq::client {
namespace {

absl::Status Dispatch(const CommandLine& line, CommandContext& context) {
  const Flags& flags = line.flags();
  const std::string& name = flags.command;
  if (name == "submit") return RunSubmit(context, flags.submit);
  if (name == "plan") return RunPlan(context, flags.plan);
  if (name == "get") return RunGet(context, flags.job_id);
  if (name == "list") return RunList(context, flags.list);
  if (name == "watch") return RunWatch(context, flags.watch);
  if (name == "cancel") return RunCancel(context, flags.job_id);
  if (name == "delete") return RunDelete(context, flags.job_id);
  if (name == "artifacts") return RunArtifacts(context, flags.job_id);
  if (name == "download") return RunDownload(context, flags.download);
  if (name == "verify") return RunVerify(context, flags.directory);
  if (name == "report") return RunReport(context, flags.report);
  if (name == "quantize") return RunQuantize(context, flags.quantize);
  if (name == "capabilities") return RunCapabilities(context);
  if (name == "health") return RunHealth(context, flags.service);
  if (name == "version") return RunVersion(context);
  if (name == "completion")
    return context.output.PrintText(CompletionScript(line.app(), flags.shell));
  return absl::InternalError(absl::StrCat("Command ", name, " is not implemented."));
}

// After a usage error the parsed flags are not all there.
bool WantsJson(const std::vector<std::string>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "-ojson" ||
        (arguments[i] == "-o" && i + 1 < arguments.size() && arguments[i + 1] == "json")) {
      return true;
    }
  }
  return false;
}

int NothingToRun(const std::vector<std::string>& arguments, const std::string& text, int exit_code,
                 std::ostream& out, std::ostream& err) {
  if (exit_code == kExitOk) {
    out << text << std::flush;
  } else if (WantsJson(arguments)) {
    const nlohmann::json error = {{"code", "INVALID_ARGUMENT"},
                                  {"reason", "USAGE"},
                                  {"message", text},
                                  {"exit_code", exit_code}};
    err << nlohmann::json{{"error", error}}.dump(2, ' ', false,
                                                 nlohmann::json::error_handler_t::replace)
        << std::endl;
  } else {
    err << text << std::flush;
  }
  return exit_code;
}

}  // namespace

int Run(const std::vector<std::string>& arguments, std::ostream& out, std::ostream& err,
        const Terminal& terminal, CancelToken& cancel) {
  CommandLine line;
  std::string text;
  int exit_code = kExitOk;
  if (!line.Parse(arguments, text, exit_code))
    return NothingToRun(arguments, text, exit_code, out, err);

  const GlobalFlags& flags = line.flags().global;
  ProgressPrinter progress(err,
                           {!flags.quiet, terminal.is_terminal, terminal.color, terminal.columns});
  ClientOptions options;
  options.server = flags.server;
  if (flags.timeout_seconds > 0)
    options.deadline = absl::Now() + absl::Seconds(flags.timeout_seconds);
  // The client's own version is worth printing without a server, and at once.
  if (line.flags().command == "version") options.max_attempts = 1;
  options.on_retry = [&](const absl::Status& why, absl::Duration wait) {
    if (flags.quiet) return;
    progress.Note(absl::StrCat("Connection to ", flags.server, " failed (", why.message(),
                               "); trying again in ", DurationText(wait), "."));
  };
  Client client(options, cancel);
  Output output(out, flags.output);
  CommandContext context{flags, client, output, progress, err, cancel};
  const absl::Status status = Dispatch(line, context);
  progress.Finish();
  const bool interrupted = cancel.cancelled();
  if (!status.ok()) err << DescribeFailure(status, interrupted, flags) << std::flush;
  return ExitCodeFor(status, interrupted);
}

}  // namespace sinq::client
