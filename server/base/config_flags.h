// The command line of sinqd, on top of the file and the environment.
#ifndef SINQ_SERVER_BASE_CONFIG_FLAGS_H_
#define SINQ_SERVER_BASE_CONFIG_FLAGS_H_

#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "server/base/config.h"

namespace sinq {

struct CommandLine {
  ServerConfig config;
  std::string print;  // not empty: show this on standard output and end (--help, --version, ...)
};

// Defaults < --config FILE < SINQ_* variables (looked up with `get`) < flags. InvalidArgument names
// the flag, variable or key. A configuration that is only printed is not validated.
absl::StatusOr<CommandLine> ParseCommandLine(
    int argc, const char* const* argv, const std::string& version,
    absl::FunctionRef<std::optional<std::string>(const std::string& name)> get);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_CONFIG_FLAGS_H_
