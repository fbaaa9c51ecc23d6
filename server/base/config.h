// The server's configuration: defaults < JSON file < SINQ_* variables < flags (set by main).
#ifndef SINQ_SERVER_BASE_CONFIG_H_
#define SINQ_SERVER_BASE_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sinq {

struct ServerConfig {
  std::string listen = "127.0.0.1:7461";          // port 0: any
  std::string metrics_listen = "127.0.0.1:7462";  // "" serves none
  std::string data_dir;                           // job store; must be set
  std::vector<std::string> allow_roots;           // reads and writes of jobs stay beneath
  int workers = 0;                                // threads; 0: one per CPU
  std::string backend = "auto";                   // auto | cpu | cuda
  std::vector<int> devices;                       // CUDA devices by number; empty: all
  int cuda_streams = 4;                           // tensors in work at once on each device
  uint64_t device_memory_budget_bytes = 0;        // of each device; 0: most of what is free
  uint64_t memory_budget_bytes = 0;               // 0: a quarter of the machine's memory
  bool insecure = false;                          // allows a non-loopback listen without TLS
  int64_t drain_grace_seconds = 30;
  int64_t lease_duration_seconds = 25;        // a dead worker is noticed within 30 s
  int64_t retention_seconds = 7 * 24 * 3600;  // of finished jobs

  // One key per field, sorted; what --print-config shows and --config reads.
  std::string ToJson() const;
};

// The keys of a JSON object replace fields of `config`. Sizes may be numbers or "2GiB". Unknown
// keys, duplicate keys and wrong types are InvalidArgument naming the key; `config` is then
// unchanged.
absl::Status ApplyConfigJson(absl::string_view text, ServerConfig& config);
// The same from a file chosen by the operator.
absl::Status ApplyConfigFile(const std::string& path, ServerConfig& config);
// SINQ_LISTEN, SINQ_METRICS_LISTEN, SINQ_DATA_DIR, SINQ_ALLOW_ROOTS (colon-separated),
// SINQ_WORKERS, SINQ_BACKEND, SINQ_DEVICES (comma-separated), SINQ_CUDA_STREAMS,
// SINQ_DEVICE_MEMORY_BUDGET, SINQ_MEMORY_BUDGET, SINQ_INSECURE (true|false),
// SINQ_DRAIN_GRACE_SECONDS, SINQ_LEASE_DURATION_SECONDS, SINQ_RETENTION_SECONDS. `get` looks a
// variable up.
absl::Status ApplyEnvironment(
    absl::FunctionRef<std::optional<std::string>(const std::string& name)> get,
    ServerConfig& config);

// Every violated rule in one message. A non-loopback `listen` is refused unless `insecure`, because
// there is no TLS yet.
absl::Status ValidateConfig(const ServerConfig& config);

// "0,2": whole numbers with commas between and nothing else.
absl::StatusOr<std::vector<int>> ParseDevices(absl::string_view text);
// "1048576", "64KiB", "2GiB"; whole numbers only ("1.5GB" is refused). B, KiB, MiB, GiB, TiB and
// the decimal kB, MB, GB, TB.
absl::StatusOr<uint64_t> ParseSize(absl::string_view text);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_CONFIG_H_
