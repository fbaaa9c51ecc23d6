#include "server/base/config.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "server/base/error.h"
#include "server/base/json.h"
#include "server/base/limits.h"
#include "server/base/listen_address.h"

namespace sinq {
namespace {

constexpr int kMaxWorkers = 1024;
constexpr int64_t kMaxSeconds = int64_t{10} * 365 * 24 * 3600;
constexpr uint64_t kMinMemoryBudgetBytes = 16 * kMiB;
constexpr uint64_t kMinDeviceMemoryBudgetBytes = 64 * kMiB;

absl::Status Invalid(absl::string_view field, absl::string_view why) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("Configuration: \"", field, "\" ", why, "."),
                   {{"field", std::string(field)}});
}

absl::Status Read(const nlohmann::json& value, absl::string_view key, std::string& out) {
  if (!value.is_string()) return Invalid(key, "must be a string");
  out = value.get<std::string>();
  return absl::OkStatus();
}

absl::Status Read(const nlohmann::json& value, absl::string_view key, bool& out) {
  if (!value.is_boolean()) return Invalid(key, "must be true or false");
  out = value.get<bool>();
  return absl::OkStatus();
}

absl::Status Read(const nlohmann::json& value, absl::string_view key, int64_t& out) {
  const bool fits =
      value.is_number_integer() &&
      (!value.is_number_unsigned() ||
       value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  if (!fits) return Invalid(key, "must be a whole number");
  out = value.get<int64_t>();
  return absl::OkStatus();
}

absl::Status Read(const nlohmann::json& value, absl::string_view key, int& out) {
  int64_t wide = 0;
  if (absl::Status status = Read(value, key, wide); !status.ok()) return status;
  if (wide < std::numeric_limits<int>::min() || wide > std::numeric_limits<int>::max()) {
    return Invalid(key, "is out of range");
  }
  out = static_cast<int>(wide);
  return absl::OkStatus();
}

absl::Status ReadSize(const nlohmann::json& value, absl::string_view key, uint64_t& out) {
  if (value.is_number_unsigned()) {
    out = value.get<uint64_t>();
    return absl::OkStatus();
  }
  if (!value.is_string()) return Invalid(key, "must be a number of bytes or a text like \"2GiB\"");
  absl::StatusOr<uint64_t> size = ParseSize(value.get<std::string>());
  if (!size.ok()) return Annotate(size.status(), key);
  out = *size;
  return absl::OkStatus();
}

absl::Status ReadList(const nlohmann::json& value, absl::string_view key,
                      std::vector<std::string>& out) {
  if (!value.is_array()) return Invalid(key, "must be a list of strings");
  std::vector<std::string> list;
  for (const nlohmann::json& item : value) {
    if (!item.is_string()) return Invalid(key, "must be a list of strings");
    list.push_back(item.get<std::string>());
  }
  out = std::move(list);
  return absl::OkStatus();
}

absl::Status ReadDevices(const nlohmann::json& value, absl::string_view key,
                         std::vector<int>& out) {
  if (!value.is_array()) return Invalid(key, "must be a list of device numbers");
  std::vector<int> devices;
  for (const nlohmann::json& item : value) {
    if (absl::Status status = Read(item, key, devices.emplace_back()); !status.ok()) return status;
  }
  out = std::move(devices);
  return absl::OkStatus();
}

absl::Status ApplyKey(const std::string& key, const nlohmann::json& value, ServerConfig& config) {
  if (key == "listen") return Read(value, key, config.listen);
  if (key == "metrics_listen") return Read(value, key, config.metrics_listen);
  if (key == "data_dir") return Read(value, key, config.data_dir);
  if (key == "allow_roots") return ReadList(value, key, config.allow_roots);
  if (key == "workers") return Read(value, key, config.workers);
  if (key == "backend") return Read(value, key, config.backend);
  if (key == "devices") return ReadDevices(value, key, config.devices);
  if (key == "cuda_streams") return Read(value, key, config.cuda_streams);
  if (key == "device_memory_budget_bytes") {
    return ReadSize(value, key, config.device_memory_budget_bytes);
  }
  if (key == "memory_budget_bytes") return ReadSize(value, key, config.memory_budget_bytes);
  if (key == "insecure") return Read(value, key, config.insecure);
  if (key == "drain_grace_seconds") return Read(value, key, config.drain_grace_seconds);
  if (key == "lease_duration_seconds") return Read(value, key, config.lease_duration_seconds);
  if (key == "retention_seconds") return Read(value, key, config.retention_seconds);
  return Invalid(key, "is not a known key; --print-config shows those that exist");
}

// A variable's text as the JSON value that its key takes.
absl::StatusOr<nlohmann::json> FromText(const std::string& key, const std::string& text) {
  if (key == "allow_roots") {
    return nlohmann::json(std::vector<std::string>(absl::StrSplit(text, ':', absl::SkipEmpty())));
  }
  if (key == "devices") {
    const absl::StatusOr<std::vector<int>> devices = ParseDevices(text);
    if (!devices.ok()) return devices.status();
    return nlohmann::json(*devices);
  }
  if (key == "insecure") {
    if (text != "true" && text != "false") return Invalid(key, "must be true or false");
    return nlohmann::json(text == "true");
  }
  if (key == "workers" || key == "cuda_streams" || key == "drain_grace_seconds" ||
      key == "lease_duration_seconds" || key == "retention_seconds") {
    int64_t number = 0;
    if (!absl::SimpleAtoi(text, &number)) return Invalid(key, "must be a whole number");
    return nlohmann::json(number);
  }
  return nlohmann::json(text);
}

constexpr std::array<std::pair<absl::string_view, absl::string_view>, 14> kVariables = {{
    {"SINQ_LISTEN", "listen"},
    {"SINQ_METRICS_LISTEN", "metrics_listen"},
    {"SINQ_DATA_DIR", "data_dir"},
    {"SINQ_ALLOW_ROOTS", "allow_roots"},
    {"SINQ_WORKERS", "workers"},
    {"SINQ_BACKEND", "backend"},
    {"SINQ_DEVICES", "devices"},
    {"SINQ_CUDA_STREAMS", "cuda_streams"},
    {"SINQ_DEVICE_MEMORY_BUDGET", "device_memory_budget_bytes"},
    {"SINQ_MEMORY_BUDGET", "memory_budget_bytes"},
    {"SINQ_INSECURE", "insecure"},
    {"SINQ_DRAIN_GRACE_SECONDS", "drain_grace_seconds"},
    {"SINQ_LEASE_DURATION_SECONDS", "lease_duration_seconds"},
    {"SINQ_RETENTION_SECONDS", "retention_seconds"},
}};

void CheckListen(const ServerConfig& config, std::vector<std::string>& wrong) {
  if (absl::StatusOr<ListenAddress> address = ParseListenAddress(config.listen, "listen");
      !address.ok()) {
    wrong.emplace_back(address.status().message());
  } else if (!address->is_loopback && !config.insecure) {
    wrong.push_back(absl::StrCat(
        "listen: ", config.listen,
        " can be reached from other machines and there is no TLS; use a loopback address, or "
        "--insecure if the network is trusted."));
  }
  if (config.metrics_listen.empty()) return;
  if (absl::StatusOr<ListenAddress> address =
          ParseListenAddress(config.metrics_listen, "metrics_listen");
      !address.ok()) {
    wrong.emplace_back(address.status().message());
  }
}

void CheckSeconds(absl::string_view field, int64_t value, int64_t least,
                  std::vector<std::string>& wrong) {
  if (value >= least && value <= kMaxSeconds) return;
  wrong.push_back(absl::StrCat(field, ": ", value, " is not between ", least, " and ", kMaxSeconds,
                               " seconds."));
}

void CheckDevices(const ServerConfig& config, std::vector<std::string>& wrong) {
  if (config.devices.size() > kMaxDevices) {
    wrong.push_back(absl::StrCat("devices: at most ", kMaxDevices, " can be used."));
  }
  std::set<int> seen;
  for (const int device : config.devices) {
    if (device < 0) wrong.push_back(absl::StrCat("devices: ", device, " is no device number."));
    if (!seen.insert(device).second) {
      wrong.push_back(absl::StrCat("devices: ", device, " is given twice."));
    }
  }
  if (!config.devices.empty() && config.backend == "cpu") {
    wrong.push_back("devices: are given, but backend is cpu; leave one of the two out.");
  }
  if (config.cuda_streams < 1 || config.cuda_streams > kMaxCudaStreams) {
    wrong.push_back(absl::StrCat("cuda_streams: ", config.cuda_streams, " is not between 1 and ",
                                 kMaxCudaStreams, "."));
  }
  if (config.device_memory_budget_bytes != 0 &&
      config.device_memory_budget_bytes < kMinDeviceMemoryBudgetBytes) {
    wrong.push_back(absl::StrCat("device_memory_budget_bytes: ", config.device_memory_budget_bytes,
                                 " is less than ", kMinDeviceMemoryBudgetBytes, "."));
  }
}

}  // namespace

std::string ServerConfig::ToJson() const {
  nlohmann::json json;
  json["listen"] = listen;
  json["metrics_listen"] = metrics_listen;
  json["data_dir"] = data_dir;
  json["allow_roots"] = allow_roots;
  json["workers"] = workers;
  json["backend"] = backend;
  json["devices"] = devices;
  json["cuda_streams"] = cuda_streams;
  json["device_memory_budget_bytes"] = device_memory_budget_bytes;
  json["memory_budget_bytes"] = memory_budget_bytes;
  json["insecure"] = insecure;
  json["drain_grace_seconds"] = drain_grace_seconds;
  json["lease_duration_seconds"] = lease_duration_seconds;
  json["retention_seconds"] = retention_seconds;
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

absl::Status ApplyConfigJson(absl::string_view text, ServerConfig& config) {
  absl::StatusOr<nlohmann::json> tree = ParseStrictJsonTree(text, kMaxJsonDepth, "Configuration");
  if (!tree.ok()) return tree.status();
  if (!tree->is_object()) return Invalid("(top level)", "must be a JSON object");
  ServerConfig changed = config;
  for (const auto& [key, value] : tree->items()) {
    if (absl::Status status = ApplyKey(key, value, changed); !status.ok()) return status;
  }
  config = std::move(changed);
  return absl::OkStatus();
}

absl::Status ApplyConfigFile(const std::string& path, ServerConfig& config) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    return MakeError(
        absl::StatusCode::kNotFound, Reason::kInvalidArgument,
        absl::StrCat("Cannot read the configuration file \"", path, "\", or it is empty."),
        {{"field", "config"}});
  }
  return Annotate(ApplyConfigJson(text.str(), config), path);
}

absl::Status ApplyEnvironment(
    absl::FunctionRef<std::optional<std::string>(const std::string& name)> get,
    ServerConfig& config) {
  ServerConfig changed = config;
  for (const auto& [variable, key] : kVariables) {
    const std::optional<std::string> text = get(std::string(variable));
    if (!text) continue;
    absl::StatusOr<nlohmann::json> value = FromText(std::string(key), *text);
    if (!value.ok()) return Annotate(value.status(), variable);
    if (absl::Status status = ApplyKey(std::string(key), *value, changed); !status.ok()) {
      return Annotate(status, variable);
    }
  }
  config = std::move(changed);
  return absl::OkStatus();
}

absl::Status ValidateConfig(const ServerConfig& config) {
  std::vector<std::string> wrong;
  CheckListen(config, wrong);
  if (config.data_dir.empty())
    wrong.push_back("data_dir: a directory for the job store is needed.");
  if (config.workers < 0 || config.workers > kMaxWorkers) {
    wrong.push_back(
        absl::StrCat("workers: ", config.workers, " is not between 0 and ", kMaxWorkers, "."));
  }
  if (config.backend != "auto" && config.backend != "cpu" && config.backend != "cuda") {
    wrong.push_back(
        absl::StrCat("backend: \"", config.backend, "\" is none of auto, cpu and cuda."));
  }
  if (config.memory_budget_bytes != 0 && config.memory_budget_bytes < kMinMemoryBudgetBytes) {
    wrong.push_back(absl::StrCat("memory_budget_bytes: ", config.memory_budget_bytes,
                                 " is less than ", kMinMemoryBudgetBytes, "."));
  }
  CheckDevices(config, wrong);
  CheckSeconds("drain_grace_seconds", config.drain_grace_seconds, 0, wrong);
  CheckSeconds("lease_duration_seconds", config.lease_duration_seconds, 3, wrong);
  CheckSeconds("retention_seconds", config.retention_seconds, 0, wrong);
  if (wrong.empty()) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrJoin(wrong, " "), {{"field", "config"}});
}

absl::StatusOr<std::vector<int>> ParseDevices(absl::string_view text) {
  std::vector<int> devices;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const bool digits = part.find_first_not_of("0123456789") == absl::string_view::npos;
    if (!digits || !absl::SimpleAtoi(part, &devices.emplace_back())) {
      return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                       absl::StrCat("\"", text, "\" is not a list of devices. Give their numbers ",
                                    "with commas between, such as 0,2."),
                       {{"field", "devices"}});
    }
  }
  return devices;
}

absl::StatusOr<uint64_t> ParseSize(absl::string_view text) {
  constexpr std::array<std::pair<absl::string_view, uint64_t>, 10> kUnits = {{
      {"", 1},
      {"B", 1},
      {"KiB", kKiB},
      {"MiB", kMiB},
      {"GiB", kGiB},
      {"TiB", 1024 * kGiB},
      {"kB", 1'000},
      {"MB", 1'000'000},
      {"GB", 1'000'000'000},
      {"TB", 1'000'000'000'000},
  }};
  const size_t end = std::min(text.find_first_not_of("0123456789"), text.size());
  uint64_t number = 0;
  if (end > 0 && absl::SimpleAtoi(text.substr(0, end), &number)) {
    for (const auto& [unit, factor] : kUnits) {
      if (text.substr(end) != unit) continue;
      if (number > std::numeric_limits<uint64_t>::max() / factor) break;
      return number * factor;
    }
  }
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   absl::StrCat("\"", text,
                                "\" is not a size. Give bytes, or a whole number with a "
                                "unit, such as 512MiB or 2GiB."));
}

}  // namespace sinq
