// The header of a safetensors file, parsed as hostile input.
#ifndef SINQ_SERVER_SOURCE_SAFETENSORS_HEADER_H_
#define SINQ_SERVER_SOURCE_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/base/file_system.h"
#include "server/base/limits.h"

namespace sinq {

// Bounds of one header; tests lower them.
struct SafetensorsLimits {
  uint64_t max_header_bytes = kMaxSafetensorsHeaderBytes;
  uint64_t max_tensors = kMaxTensorsPerSource;
};

struct SafetensorsTensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // from the start of the data, i.e. of byte data_offset
};

struct SafetensorsHeader {
  std::vector<SafetensorsTensor> tensors;       // by begin, then end
  std::map<std::string, std::string> metadata;  // __metadata__
  uint64_t data_offset = 0;                     // 8 + header length
  uint64_t file_bytes = 0;
  std::string sha256;  // hex, of the first data_offset bytes
};

// Parses the JSON of a header whose file holds `data_bytes` after it. Guarantees for every tensor:
// known dtype, rank and name within limits, end - begin == bits * product(shape) / 8 without wrap,
// and all tensors together cover [0, data_bytes) without gap or overlap. Unknown fields, duplicate
// keys and a __metadata__ that is not string to string are refused. Errors are
// InvalidArgument/kMalformedSource, kUnsupportedSource (dtype) or kLimitExceeded, and name `label`,
// the tensor and the offending numbers. `data_offset`, `file_bytes` and `sha256` are left empty.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json,
                                                         uint64_t data_bytes,
                                                         absl::string_view label,
                                                         const SafetensorsLimits& limits = {});

// Reads and parses the header of a file. The declared length is compared with the limits and with
// the file's real length before a byte is allocated for it.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const File& file, absl::string_view label,
                                                        const SafetensorsLimits& limits = {});

}  // namespace sinq

#endif  // SINQ_SERVER_SOURCE_SAFETENSORS_HEADER_H_
