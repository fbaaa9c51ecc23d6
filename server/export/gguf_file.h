// The container of a GGUF file: read strictly from a template that a converter made, and written
// again with other tensor types. Metadata is kept as it is. Byte format: gguf.cpp of ggml, version
// 3 (little-endian).
#ifndef SINQ_SERVER_EXPORT_GGUF_FILE_H_
#define SINQ_SERVER_EXPORT_GGUF_FILE_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/base/file_system.h"

namespace sinq {

// ggml's numbers of the types that we read or write.
enum class GgmlType : uint32_t { kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kBf16 = 30 };
absl::string_view GgmlTypeName(GgmlType type);  // "F32", "Q4_0"; "" for others
bool IsFloat(GgmlType type);                    // F32, F16, BF16

struct GgufTensor {
  std::string name;                  // "blk.0.attn_q.weight"
  std::vector<uint64_t> dimensions;  // 1 to 4, the fastest (in_features) first
  GgmlType type = GgmlType::kF32;
  uint64_t offset = 0;  // from the start of the data
  uint64_t size_bytes = 0;
};

// An unsigned value among the metadata.
struct GgufNumber {
  uint64_t value = 0;
  uint64_t offset = 0;  // of its bytes, into GgufFile::metadata
  uint32_t size_bytes = 0;
};

struct GgufFile {
  std::string metadata;  // key-value pairs, as they are in the file
  uint64_t metadata_count = 0;
  std::string architecture;                   // general.architecture: "llama", "qwen2", ...
  std::map<std::string, GgufNumber> numbers;  // by key ("llama.attention.head_count")
  std::set<std::string> other_keys;           // whose values are no unsigned numbers
  uint32_t alignment = 32;                    // of every tensor and of the data
  std::vector<GgufTensor> tensors;            // in file order
  uint64_t data_offset = 0;                   // from the start of the file
};

// Bytes of a tensor. InvalidArgument if the dimensions are not 1 to 4 positive numbers, the first
// is not a multiple of the type's block, or the size does not fit 63 bits.
absl::StatusOr<uint64_t> GgufTensorBytes(const std::vector<uint64_t>& dimensions, GgmlType type);

// Reads the header at the start of a file of `file_size_bytes`; `head` is its beginning, at least
// the whole header (kMaxGgufHeaderBytes are always enough). InvalidArgument/kMalformedSource with
// the byte offset for anything that ggml would refuse, for types other than GgmlType, for a file
// that is one of several (gguf-split) and for data that does not lie where the header says; `label`
// names the file.
absl::StatusOr<GgufFile> ParseGguf(absl::string_view head, uint64_t file_size_bytes,
                                   absl::string_view label);
// The same from a file, of which no more is read than the header needs (four times its size at
// most).
absl::StatusOr<GgufFile> ReadGguf(const File& file, absl::string_view label);

// Sets the u32 value of a key; appends the pair if there is none. InvalidArgument/kMalformedSource
// if the key has a value of another type.
absl::Status SetGgufNumber(GgufFile& file, const std::string& key, uint32_t value);

// Header of a file with the metadata and tensors of `file`, padded up to the data; sets every size
// and offset and data_offset from the tensors' dimensions and types.
absl::StatusOr<std::string> LayOutGguf(GgufFile& file);

}  // namespace sinq

#endif  // SINQ_SERVER_EXPORT_GGUF_FILE_H_
