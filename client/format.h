// Numbers and tables for people.
#ifndef SINQ_CLIENT_FORMAT_H_
#define SINQ_CLIENT_FORMAT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace sinq::client {

// "0 B", "1023 B", "1.5 KiB", "4.0 GiB". Negative values are shown as 0.
std::string FormatBytes(int64_t bytes);
// "9GiB", "1.5 MiB", "850MB" (powers of 1000), "4096" (bytes); nothing for other text, or for 0 and
// sizes of 2^60 bytes and more.
std::optional<int64_t> ParseBytes(absl::string_view text);
// "12.3 MiB/s".
std::string FormatRate(double bytes_per_second);
// "0.4s", "12s", "3m 05s", "2h 07m", "3d 04h". Negative is shown as "0s", infinite as "-".
std::string DurationText(absl::Duration duration);
// "[4096, 1024]".
std::string FormatShape(const std::vector<int64_t>& shape);
// Control characters replaced by '?': text from a server or a file must not steer the terminal.
std::string Printable(absl::string_view text);

// Left-aligned columns, two spaces apart, header in capitals, no trailing spaces. Not thread-safe.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void Add(std::vector<std::string> row);
  std::string Render() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace sinq::client

#endif  // SINQ_CLIENT_FORMAT_H_
