#include "server/base/log.h"

#include <memory>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "server/base/text.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace sinq {
namespace {

constexpr size_t kMaxValueBytes = 4096;

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

absl::string_view LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "error";
}

std::shared_ptr<spdlog::logger> MakeLogger() {
  auto logger =
      std::make_shared<spdlog::logger>("sinq", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("%v");  // the line is complete JSON already
  logger->set_level(spdlog::level::info);
  logger->flush_on(spdlog::level::debug);
  return logger;
}

// Never destroyed, so that threads may log while the process ends.
spdlog::logger& Logger() {
  static const auto* const logger = new std::shared_ptr<spdlog::logger>(MakeLogger());
  return **logger;
}

std::string Timestamp() {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone());
}

}  // namespace

std::string FormatLogLine(LogLevel level, absl::string_view event, absl::string_view timestamp,
                          std::initializer_list<std::pair<absl::string_view, std::string>> fields) {
  nlohmann::ordered_json line;
  line["ts"] = std::string(timestamp);
  line["level"] = std::string(LevelName(level));
  line["event"] = PrintableText(event, kMaxValueBytes);
  for (const auto& [key, value] : fields) {
    line[PrintableText(key, kMaxValueBytes)] = PrintableText(value, kMaxValueBytes);
  }
  return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void Log(LogLevel level, absl::string_view event,
         std::initializer_list<std::pair<absl::string_view, std::string>> fields) {
  spdlog::logger& logger = Logger();
  if (!logger.should_log(ToSpdlog(level))) return;
  logger.log(ToSpdlog(level), "{}", FormatLogLine(level, event, Timestamp(), fields));
}

void SetMinimumLogLevel(LogLevel level) { Logger().set_level(ToSpdlog(level)); }

}  // namespace sinq
