// Text that came from outside, made safe for messages, logs and protobuf strings.
#ifndef SINQ_SERVER_BASE_TEXT_H_
#define SINQ_SERVER_BASE_TEXT_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace sinq {

// Valid UTF-8 without control characters: offending bytes become \xNN. At most `max_bytes` long; a
// longer text ends in "...".
std::string PrintableText(absl::string_view text, size_t max_bytes);

// Whether `text` is well-formed UTF-8 (no overlong forms, no surrogates, at most U+10FFFF).
bool IsValidUtf8(absl::string_view text);

}  // namespace sinq

#endif  // SINQ_SERVER_BASE_TEXT_H_
