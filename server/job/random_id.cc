#include "server/job/random_id.h"

#include <sys/random.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "server/base/error.h"

namespace sinq {

absl::StatusOr<std::string> RandomId(absl::string_view prefix) {
  constexpr absl::string_view kAlphabet = "abcdefghijklmnopqrstuvwxyz234567";
  static_assert(kAlphabet.size() == 32);
  std::array<uint8_t, 26> bytes = {};  // up to 256 bytes come whole or not at all
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    return ErrnoToStatus(errno, "Cannot make a random id");
  }
  std::string id(prefix);
  for (const uint8_t byte : bytes) id += kAlphabet[byte % kAlphabet.size()];
  return id;
}

}  // namespace sinq
