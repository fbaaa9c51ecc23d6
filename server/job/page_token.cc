#include "server/job/page_token.h"

#include <cstddef>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/base/error.h"

namespace sinq {
namespace {

constexpr size_t kNumberBytes = 8, kChecksumBytes = 4;

void AppendBigEndian(uint64_t value, size_t bytes, std::string* out) {
  for (size_t i = bytes; i-- > 0;) out->push_back(static_cast<char>((value >> (8 * i)) & 0xff));
}

uint64_t ReadBigEndian(absl::string_view bytes) {
  uint64_t value = 0;
  for (const char byte : bytes) value = (value << 8) | static_cast<uint8_t>(byte);
  return value;
}

// FNV-1a: finds accidents and hand-made tokens. It is no secret, and guards nothing that is one.
uint32_t Checksum(absl::string_view number, absl::string_view filter) {
  uint32_t hash = 2166136261u;
  for (const char byte : absl::StrCat("sinq.page.1|", filter, "|", number)) {
    hash = (hash ^ static_cast<uint8_t>(byte)) * 16777619u;
  }
  return hash;
}

}  // namespace

std::string EncodePageToken(int64_t last, absl::string_view filter) {
  std::string bytes;
  AppendBigEndian(static_cast<uint64_t>(last), kNumberBytes, &bytes);
  AppendBigEndian(Checksum(bytes, filter), kChecksumBytes, &bytes);
  return absl::WebSafeBase64Escape(bytes);
}

absl::StatusOr<int64_t> DecodePageToken(absl::string_view token, absl::string_view filter) {
  std::string bytes;
  const bool decoded = absl::WebSafeBase64Unescape(token, &bytes);
  if (decoded && bytes.size() == kNumberBytes + kChecksumBytes) {
    const absl::string_view number = absl::string_view(bytes).substr(0, kNumberBytes);
    const absl::string_view checksum = absl::string_view(bytes).substr(kNumberBytes);
    const int64_t last = static_cast<int64_t>(ReadBigEndian(number));
    if (ReadBigEndian(checksum) == Checksum(number, filter) && last >= 0) return last;
  }
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kInvalidArgument,
                   "page_token was not returned by this server for this filter; repeat the filter "
                   "of the first page, or leave page_token empty to start again.",
                   {{"field", "page_token"}});
}

}  // namespace sinq
