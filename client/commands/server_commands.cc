#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/commands/commands.h"

namespace sinq::client {

absl::Status RunCapabilities(CommandContext& context) {
  const auto capabilities = context.client.GetCapabilities();
  if (!capabilities.ok()) return capabilities.status();
  return context.output.Print(*capabilities, CapabilitiesText(*capabilities),
                              capabilities->version());
}

absl::Status RunHealth(CommandContext& context, const std::string& service) {
  const auto state = context.client.CheckHealth(service);
  if (!state.ok()) return state.status();
  const bool json = context.output.format() == OutputFormat::kJson;
  absl::Status status =
      context.output.PrintText(json ? nlohmann::json{{"status", *state}}.dump() : *state);
  if (!status.ok() || *state == "SERVING") return status;
  return absl::UnavailableError(absl::StrCat("The server answers, but is ", *state, "."));
}

absl::Status RunVersion(CommandContext& context) {
  const auto capabilities = context.client.GetCapabilities();
  // The client's own version is worth printing without a server.
  const std::string server = capabilities.ok() ? capabilities->version() : "";
  if (context.output.format() == OutputFormat::kJson) {
    return context.output.PrintText(
        nlohmann::json{{"client", SINQ_VERSION}, {"server", server}}.dump(2));
  }
  if (context.output.format() == OutputFormat::kName) return context.output.PrintText(SINQ_VERSION);
  return context.output.PrintText(absl::StrCat("client  ", SINQ_VERSION, "\nserver  ",
                                               server.empty() ? "not reachable" : server));
}

}  // namespace sinq::client
