// Local safetensors files: a bounded reader of the header, and a writer of one sorted, contiguous
// file.
#ifndef SINQ_CLIENT_SAFETENSORS_FILE_H_
#define SINQ_CLIENT_SAFETENSORS_FILE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/local_file.h"

namespace sinq::client {

struct TensorEntry {
  std::string dtype;  // safetensors spelling: "BF16"
  std::vector<int64_t> shape;
  int64_t offset_bytes = 0;  // from the start of the file
  int64_t size_bytes = 0;
};
using TensorEntries = std::map<std::string, TensorEntry>;

inline constexpr int64_t kMaxHeaderBytes = 16 * 1024 * 1024;  // about 100,000 tensors
inline constexpr int kMaxRank = 8;
inline constexpr size_t kMaxTensorNameBytes = 512;

// Bytes of one element; 0 for an unknown dtype.
int64_t DtypeBytes(absl::string_view dtype);

// Checks that sizes match shapes and that the ranges lie in the file, leave no hole and do not
// overlap. InvalidArgument names the tensor and the byte offset.
absl::StatusOr<TensorEntries> ReadSafetensorsHeader(const LocalFile& file);

// A tensor to be written, and who provides its bytes.
struct TensorContent {
  std::string dtype;
  std::vector<int64_t> shape;
  int64_t size_bytes = 0;
  // Must call `write` for all size_bytes in order.
  std::function<absl::Status(const std::function<absl::Status(absl::string_view)>& write)> produce;
};

// 8-byte length, then the JSON header padded with spaces to a multiple of 8. Tensors lie in name
// order without gaps.
absl::StatusOr<std::string> SafetensorsHeader(const std::map<std::string, TensorContent>& tensors);
// Writes the whole file; Internal if a tensor produces more or less than its size.
absl::Status WriteSafetensors(const std::map<std::string, TensorContent>& tensors, LocalFile& file);

}  // namespace sinq::client

#endif  // SINQ_CLIENT_SAFETENSORS_FILE_H_
