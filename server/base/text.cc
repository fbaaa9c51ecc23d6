#include "server/base/text.h"

#include <cstdint>

#include "absl/strings/str_cat.h"

namespace sinq {
namespace {

bool IsContinuation(absl::string_view text, size_t at) {
  return at < text.size() && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80;
}

// Length of the well-formed UTF-8 sequence at `at`, or 0.
size_t SequenceLength(absl::string_view text, size_t at) {
  const uint8_t lead = static_cast<uint8_t>(text[at]);
  if (lead < 0x80) return 1;
  const uint8_t second = at + 1 < text.size() ? static_cast<uint8_t>(text[at + 1]) : 0;
  if (!IsContinuation(text, at + 1)) return 0;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (!IsContinuation(text, at + 2)) return 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const bool overlong = lead == 0xE0 && second < 0xA0;
    const bool surrogate = lead == 0xED && second >= 0xA0;
    return overlong || surrogate ? 0 : 3;
  }
  if (lead < 0xF0 || lead > 0xF4 || !IsContinuation(text, at + 3)) return 0;
  const bool overlong = lead == 0xF0 && second < 0x90;
  const bool beyond = lead == 0xF4 && second >= 0x90;
  return overlong || beyond ? 0 : 4;
}

bool IsControl(char c) {
  const uint8_t byte = static_cast<uint8_t>(c);
  return byte < 0x20 || byte == 0x7F;
}

std::string HexEscape(char c) {
  return absl::StrCat("\\x", absl::Hex(static_cast<uint8_t>(c), absl::kZeroPad2));
}

}  // namespace

std::string PrintableText(absl::string_view text, size_t max_bytes) {
  constexpr absl::string_view kCut = "...";
  std::string out;
  size_t cut_at = 0;  // the longest whole-character prefix of `out` that leaves room for kCut
  for (size_t at = 0; at < text.size();) {
    const size_t length = SequenceLength(text, at);
    const bool plain = length > 0 && !IsControl(text[at]);
    out += plain ? std::string(text.substr(at, length)) : HexEscape(text[at]);
    at += plain ? length : 1;
    if (out.size() + kCut.size() <= max_bytes) cut_at = out.size();
    if (out.size() <= max_bytes) continue;
    out.resize(cut_at);
    absl::StrAppend(&out, kCut.substr(0, max_bytes - cut_at));
    return out;
  }
  return out;
}

bool IsValidUtf8(absl::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = SequenceLength(text, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

}  // namespace sinq
