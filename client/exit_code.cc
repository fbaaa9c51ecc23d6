#include "client/exit_code.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/error_details.h"
#include "client/format.h"

namespace sinq::client {
namespace {

// RESOURCE_EXHAUSTED is worth a retry unless it is about the request or the machine.
bool MayPass(const ErrorDetails& details) {
  return details.retry_after.has_value() || details.reason.empty() ||
         details.reason == "QUEUE_FULL";
}

std::string StepForReason(const std::string& reason) {
  if (reason == "PATH_OUTSIDE_ROOTS") {
    return "Use a path beneath one of the server's --allow-root directories, or restart sinqd with "
           "another root.";
  }
  if (reason == "OUTPUT_EXISTS") return "Choose another --output, or remove that directory.";
  if (reason == "SOURCE_NOT_FOUND")
    return "Check the path; it is opened on the machine of the server.";
  if (reason == "DISK_FULL") return "Free space on the server's disk, then submit again.";
  if (reason == "JOB_NOT_FOUND") return "`sinqctl list` shows the jobs that exist.";
  if (reason == "ARTIFACT_NOT_FOUND") return "`sinqctl artifacts JOB` shows the files that exist.";
  if (reason == "REQUEST_ID_REUSED")
    return "Use another --request-id, or repeat the first request unchanged.";
  if (reason == "MEMORY_BUDGET_TOO_SMALL") return "Restart sinqd with a larger --memory-budget.";
  if (reason == "LIMIT_EXCEEDED") return "`sinqctl capabilities` shows every limit.";
  if (reason == "NON_FINITE_WEIGHT")
    return "Repair the checkpoint, or leave that tensor out with --exclude.";
  if (reason == "ILLEGAL_TRANSITION")
    return "`sinqctl get JOB` shows the state; cancel a running job before deleting it.";
  return "";
}

}  // namespace

ExitCode ExitCodeFor(const absl::Status& status, bool interrupted) {
  if (status.ok()) return kExitOk;
  switch (status.code()) {
    case absl::StatusCode::kCancelled:
      return interrupted ? kExitInterrupted : kExitFailed;
    case absl::StatusCode::kInvalidArgument:
      return kExitUsage;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kExitAuth;
    case absl::StatusCode::kUnavailable:
      return kExitUnavailable;
    case absl::StatusCode::kResourceExhausted:
      return MayPass(GetErrorDetails(status)) ? kExitUnavailable : kExitFailed;
    case absl::StatusCode::kDeadlineExceeded:
      return kExitTimedOut;
    case absl::StatusCode::kDataLoss:
      return kExitVerification;
    default:
      return kExitFailed;
  }
}

std::string NextStep(const absl::Status& status, bool interrupted, const std::string& server) {
  const ErrorDetails details = GetErrorDetails(status);
  if (const std::string step = StepForReason(details.reason); !step.empty()) return step;
  if (details.retry_after.has_value()) {
    return absl::StrCat("Try again in ", DurationText(*details.retry_after), ".");
  }
  switch (ExitCodeFor(status, interrupted)) {
    case kExitUsage:
      return "`sinqctl COMMAND --help` shows the arguments.";
    case kExitAuth:
      return "Check the permissions of the file, or ask the operator of the server.";
    case kExitUnavailable:
      return absl::StrCat("Is sinqd running at ", server,
                          "? --server or SINQ_SERVER names another address.");
    case kExitTimedOut:
      return "Nothing on the server was stopped; use a longer --timeout, or 0 for none.";
    default:
      return "";
  }
}

std::string DescribeFailure(const absl::Status& status, bool interrupted,
                            const GlobalFlags& flags) {
  const ErrorDetails details = GetErrorDetails(status);
  const std::string code = absl::StatusCodeToString(status.code());
  const std::string next = NextStep(status, interrupted, flags.server);
  if (flags.output == OutputFormat::kJson) {
    nlohmann::json error = {{"code", code},
                            {"reason", details.reason},
                            {"message", std::string(status.message())},
                            {"metadata", details.metadata},
                            {"next", next},
                            {"exit_code", static_cast<int>(ExitCodeFor(status, interrupted))}};
    if (details.retry_after.has_value()) {
      error["retry_after_seconds"] = absl::ToDoubleSeconds(*details.retry_after);
    }
    return nlohmann::json{{"error", error}}.dump(2, ' ', false,
                                                 nlohmann::json::error_handler_t::replace) +
           "\n";
  }
  std::string text = absl::StrCat("sinqctl: ", status.message(), "\n");
  absl::StrAppend(&text, "  code: ", code);
  if (!details.reason.empty()) absl::StrAppend(&text, ", reason: ", details.reason);
  absl::StrAppend(&text, "\n");
  for (const auto& [key, value] : details.metadata)
    absl::StrAppend(&text, "  ", key, ": ", value, "\n");
  if (!next.empty()) absl::StrAppend(&text, "  next: ", next, "\n");
  return Printable(text);
}

}  // namespace sinq::client
