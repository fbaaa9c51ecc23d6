#include "server/base/config_flags.h"

#include <CLI/CLI.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/error.h"

namespace sinq {
namespace {

// What was given on the command line; empty: not given.
struct Flags {
  std::optional<std::string> listen, metrics_listen, data_dir, backend, devices,
      device_memory_budget, memory_budget;
  std::vector<std::string> allow_roots;
  std::optional<int> workers, cuda_streams;
  std::optional<int64_t> drain_grace_seconds;
  bool insecure = false, print_config = false;
  std::string config_file;
};

void Declare(CLI::App& app, Flags& flags, const std::string& version) {
  app.add_option("--listen", flags.listen, "gRPC address, e.g. 127.0.0.1:7461; port 0: any");
  app.add_option("--metrics-listen", flags.metrics_listen,
                 "address of /metrics, e.g. 127.0.0.1:7462; empty: none");
  app.add_option("--data-dir", flags.data_dir, "directory of the job store; must be set");
  app.add_option("--allow-root", flags.allow_roots,
                 "a directory beneath which jobs may read and write; repeatable")
      ->allow_extra_args(false);
  app.add_option("--workers", flags.workers, "threads that quantize; 0: one per CPU");
  app.add_option("--backend", flags.backend, "auto, cpu or cuda");
  app.add_option("--devices", flags.devices, "CUDA devices, e.g. 0,2; all if not given");
  app.add_option("--cuda-streams", flags.cuda_streams,
                 "tensors in work at once on each device");
  app.add_option("--device-memory-budget", flags.device_memory_budget,
                 "memory to take on each device, e.g. 8GiB; 0: most of what is free");
  app.add_option("--memory-budget", flags.memory_budget,
                 "buffers in all, e.g. 2GiB; 0: a quarter of the memory");
  app.add_option("--drain-grace", flags.drain_grace_seconds,
                 "seconds that running jobs get to finish after SIGTERM");
  app.add_flag("--insecure", flags.insecure, "allow a --listen beyond loopback without TLS");
  app.add_option("--config", flags.config_file, "JSON file with the keys of --print-config");
  app.add_flag("--print-config", flags.print_config, "print the configuration in effect and end");
  app.set_version_flag("--version", absl::StrCat("sinqd ", version));
}

absl::Status Usage(absl::string_view message) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat(message, " See sinqd --help."));
}

absl::Status ApplySize(const std::optional<std::string>& text, absl::string_view flag,
                       uint64_t& out) {
  if (!text) return absl::OkStatus();
  const absl::StatusOr<uint64_t> bytes = ParseSize(*text);
  if (!bytes.ok()) return Annotate(bytes.status(), flag);
  out = *bytes;
  return absl::OkStatus();
}

absl::Status ApplyFlags(const Flags& flags, ServerConfig& config) {
  if (flags.listen) config.listen = *flags.listen;
  if (flags.metrics_listen) config.metrics_listen = *flags.metrics_listen;
  if (flags.data_dir) config.data_dir = *flags.data_dir;
  if (!flags.allow_roots.empty()) config.allow_roots = flags.allow_roots;
  if (flags.workers) config.workers = *flags.workers;
  if (flags.backend) config.backend = *flags.backend;
  if (flags.drain_grace_seconds) config.drain_grace_seconds = *flags.drain_grace_seconds;
  if (flags.insecure) config.insecure = true;
  if (flags.cuda_streams) config.cuda_streams = *flags.cuda_streams;
  if (flags.devices) {
    absl::StatusOr<std::vector<int>> devices = ParseDevices(*flags.devices);
    if (!devices.ok()) return Annotate(devices.status(), "--devices");
    config.devices = *std::move(devices);
  }
  absl::Status status = ApplySize(flags.device_memory_budget, "--device-memory-budget",
                                  config.device_memory_budget_bytes);
  if (!status.ok()) return status;
  return ApplySize(flags.memory_budget, "--memory-budget", config.memory_budget_bytes);
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(
    int argc, const char* const* argv, const std::string& version,
    absl::FunctionRef<std::optional<std::string>(const std::string& name)> get) {
  CLI::App app("sinqd: quantizes model weights over gRPC.", "sinqd");
  Flags flags;
  Declare(app, flags, version);
  CommandLine out;
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    out.print = app.help();
    return out;
  } catch (const CLI::CallForVersion& shown) {
    out.print = absl::StrCat(shown.what(), "\n");
    return out;
  } catch (const CLI::ParseError& error) {
    return Usage(absl::StrCat(error.what(), "."));
  }
  if (!flags.config_file.empty()) {
    if (absl::Status s = ApplyConfigFile(flags.config_file, out.config); !s.ok()) return s;
  }
  if (absl::Status s = ApplyEnvironment(get, out.config); !s.ok()) return s;
  if (absl::Status s = ApplyFlags(flags, out.config); !s.ok()) return s;
  if (flags.print_config) {
    out.print = absl::StrCat(out.config.ToJson(), "\n");
    return out;
  }
  if (absl::Status s = ValidateConfig(out.config); !s.ok()) return s;
  return out;
}

}  // namespace sinq
