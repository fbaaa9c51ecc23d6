#include "server/base/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "prometheus/client_metric.h"
#include "prometheus/metric_family.h"
#include "prometheus/metric_type.h"

namespace sinq {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

MetricFamily Family(absl::string_view name, absl::string_view help, MetricType type, double value) {
  MetricFamily family;
  family.name = std::string(name);
  family.help = std::string(help);
  family.type = type;
  prometheus::ClientMetric metric;
  if (type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family.metric.push_back(metric);
  return family;
}

std::string FirstLine(const char* path, absl::string_view prefix) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, prefix.size(), prefix.data(), prefix.size()) == 0) return line;
  }
  return "";
}

// Fields of /proc/self/stat after the command, which may itself hold spaces: [0] is the state.
std::vector<std::string> StatFields() {
  const std::string line = FirstLine("/proc/self/stat", "");
  const size_t end = line.rfind(") ");
  if (end == std::string::npos) return {};
  return absl::StrSplit(line.substr(end + 2), ' ');
}

std::optional<double> Field(const std::vector<std::string>& fields, size_t index) {
  uint64_t value = 0;
  if (index >= fields.size() || !absl::SimpleAtoi(fields[index], &value)) return std::nullopt;
  return static_cast<double>(value);
}

std::optional<double> BootTimeSeconds() {
  const std::vector<std::string> parts = absl::StrSplit(FirstLine("/proc/stat", "btime "), ' ');
  return Field(parts, 1);
}

std::optional<double> OpenFiles() {
  std::error_code error;
  double count = 0;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end;
       it.increment(error)) {
    ++count;
  }
  if (error) return std::nullopt;
  return count;
}

}  // namespace

std::vector<MetricFamily> ProcessMetrics::Collect() const {
  // Numbers of proc(5), less the three fields up to the command's end.
  constexpr size_t kUserTicks = 11, kSystemTicks = 12, kStartTicks = 19, kVirtual = 20, kPages = 21;
  const double ticks_per_second = static_cast<double>(::sysconf(_SC_CLK_TCK));
  const std::vector<std::string> stat = StatFields();
  std::vector<MetricFamily> families;
  const auto user = Field(stat, kUserTicks), system = Field(stat, kSystemTicks);
  if (user && system) {
    families.push_back(Family("process_cpu_seconds_total", "CPU time of the process.",
                              MetricType::Counter, (*user + *system) / ticks_per_second));
  }
  const auto start = Field(stat, kStartTicks), boot = BootTimeSeconds();
  if (start && boot) {
    families.push_back(Family("process_start_time_seconds", "Start of the process, Unix time.",
                              MetricType::Gauge, *boot + *start / ticks_per_second));
  }
  if (const auto bytes = Field(stat, kVirtual)) {
    families.push_back(Family("process_virtual_memory_bytes", "Address space of the process.",
                              MetricType::Gauge, *bytes));
  }
  if (const auto pages = Field(stat, kPages)) {
    families.push_back(Family("process_resident_memory_bytes", "Resident memory of the process.",
                              MetricType::Gauge,
                              *pages * static_cast<double>(::sysconf(_SC_PAGESIZE))));
  }
  if (const auto open = OpenFiles()) {
    families.push_back(
        Family("process_open_fds", "Open file descriptors.", MetricType::Gauge, *open));
  }
  struct rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    families.push_back(Family("process_max_fds", "Limit of open file descriptors.",
                              MetricType::Gauge, static_cast<double>(limit.rlim_cur)));
  }
  return families;
}

}  // namespace sinq
