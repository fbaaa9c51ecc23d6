// Structured logs: one JSON line per event on stderr.
#ifndef SINQ_SERVER_BASE_LOG_H_
#define SINQ_SERVER_BASE_LOG_H_

#include <initializer_list>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

namespace sinq {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Thread-safe. {"ts": RFC 3339 UTC, "level": "info", "event": "job_finished", "job": ...}; values
// are escaped, at most 4 KiB each.
void Log(LogLevel level, absl::string_view event,
         std::initializer_list<std::pair<absl::string_view, std::string>> fields = {});

// The line that Log writes, without its line end.
std::string FormatLogLine(LogLevel level, absl::string_view event, absl::string_view timestamp,
                          std::initializer_list<std::pair<absl::string_view, std::string>> fields);

// Events below `level` are not written. The default is kInfo. Thread-safe.
void SetMinimumLogLevel(LogLevel level);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_LOG_H_
