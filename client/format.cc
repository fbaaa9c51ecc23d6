#include "client/format.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

namespace sinq::client {

std::string FormatBytes(int64_t bytes) {
  constexpr std::array<const char*, 6> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes < 1024) return absl::StrCat(std::max<int64_t>(bytes, 0), " B");
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  // 1023.95 would be printed as "1024.0".
  while (value >= 1023.95 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::optional<int64_t> ParseBytes(absl::string_view text) {
  constexpr absl::string_view kPrefixes = "KMGTP";
  constexpr double kTooLarge = 1152921504606846976.0;  // 2^60
  const size_t end = text.find_first_not_of("0123456789.");
  absl::string_view unit = absl::StripAsciiWhitespace(
      end == absl::string_view::npos ? absl::string_view() : text.substr(end));
  double value = 0;
  if (!absl::SimpleAtod(text.substr(0, end), &value)) return std::nullopt;
  absl::ConsumeSuffix(&unit, "B");
  if (!unit.empty()) {
    const double base = absl::ConsumeSuffix(&unit, "i") ? 1024 : 1000;
    const size_t power = unit.size() == 1 ? kPrefixes.find(unit[0]) : absl::string_view::npos;
    if (power == absl::string_view::npos) return std::nullopt;
    value *= std::pow(base, static_cast<double>(power + 1));
  }
  if (!(value >= 1 && value < kTooLarge)) return std::nullopt;
  return static_cast<int64_t>(value);
}

std::string FormatRate(double bytes_per_second) {
  constexpr double kLargest = 9e18;
  return absl::StrCat(
      FormatBytes(static_cast<int64_t>(std::clamp(bytes_per_second, 0.0, kLargest))), "/s");
}

std::string DurationText(absl::Duration duration) {
  if (duration == absl::InfiniteDuration()) return "-";
  if (duration <= absl::ZeroDuration()) return "0s";
  if (duration < absl::Seconds(9.95)) {
    return absl::StrFormat("%.1fs", absl::ToDoubleSeconds(duration));
  }
  const int64_t seconds = absl::ToInt64Seconds(duration + absl::Milliseconds(500));
  if (seconds < 60) return absl::StrCat(seconds, "s");
  if (seconds < 3600) return absl::StrFormat("%dm %02ds", seconds / 60, seconds % 60);
  if (seconds < 86400) return absl::StrFormat("%dh %02dm", seconds / 3600, seconds / 60 % 60);
  return absl::StrFormat("%dd %02dh", seconds / 86400, seconds / 3600 % 24);
}

std::string FormatShape(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

std::string Printable(absl::string_view text) {
  std::string result(text);
  for (char& c : result) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\n') || byte == 0x7f) c = '?';
  }
  return result;
}

void Table::Add(std::vector<std::string> row) {
  for (std::string& cell : row) cell = Printable(cell);
  rows_.push_back(std::move(row));
}

std::string Table::Render() const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      absl::StrAppend(&line, row[i], std::string(widths[i] - row[i].size() + 2, ' '));
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

}  // namespace sinq::client
