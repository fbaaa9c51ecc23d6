// The bytes of safetensors files for tests, also of files that no writer would make.
#ifndef SINQ_TESTS_FAKES_SAFETENSORS_FILE_H_
#define SINQ_TESTS_FAKES_SAFETENSORS_FILE_H_

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace sinq {

// A file that claims a header of `header_bytes`, followed by `rest` as it is.
inline std::string RawSafetensorsFile(uint64_t header_bytes, absl::string_view rest) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(header_bytes >> (8 * i) & 0xFF);
  return absl::StrCat(file, rest);
}

// A file with this header and data; nothing is checked.
inline std::string SafetensorsFile(absl::string_view json, absl::string_view data) {
  return RawSafetensorsFile(json.size(), absl::StrCat(json, data));
}

}  // namespace sinq

#endif  // SINQ_TESTS_FAKES_SAFETENSORS_FILE_H_
