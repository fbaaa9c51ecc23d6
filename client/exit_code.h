// What the process returns, and what it says about a failure.
#ifndef SINQ_CLIENT_EXIT_CODE_H_
#define SINQ_CLIENT_EXIT_CODE_H_

#include <string>

#include "absl/status/status.h"
#include "client/flags.h"

namespace sinq::client {

enum ExitCode : int {
  kExitOk = 0,
  kExitFailed = 1,  // the job failed or was cancelled; also any failure without a code of its own
  kExitUsage = 2,   // flags, or a request that the server calls invalid
  kExitNotFound = 3,
  kExitAuth = 4,
  kExitUnavailable = 5,  // try again later
  kExitTimedOut = 6,     // the client stopped waiting; the job goes on
  kExitVerification = 7,
  kExitInterrupted = 130,
};

// `interrupted`: the user pressed Ctrl-C.
ExitCode ExitCodeFor(const absl::Status& status, bool interrupted);
// Reason, field or limit, and what to do next, as lines of text or as one JSON object; ends with a
// newline.
std::string DescribeFailure(const absl::Status& status, bool interrupted, const GlobalFlags& flags);
// One sentence of advice, or nothing.
std::string NextStep(const absl::Status& status, bool interrupted, const std::string& server);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_EXIT_CODE_H_
