// A model to quantize: its tensors, where their bytes are, and the other files beside them.
#ifndef SINQ_SERVER_SOURCE_MODEL_SOURCE_H_
#define SINQ_SERVER_SOURCE_MODEL_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/base/file_system.h"

namespace sinq {

// One tensor of a safetensors file. Ranges are checked against the file's real length when the
// source is opened.
struct SourceTensor {
  std::string name;
  std::string dtype;  // as in the header: "BF16", "F8_E4M3", ...
  std::vector<int64_t> shape;
  int file_index = 0;   // into ModelSource::files()
  uint64_t offset = 0;  // from the start of the file
  uint64_t size_bytes = 0;
};

struct SourceFile {
  std::string name;  // relative to the model directory
  uint64_t size_bytes = 0;
  uint64_t data_offset = 0;   // 8 + header length
  std::string header_sha256;  // hex digest of the first data_offset bytes
};

// A non-weight file to copy along (tokenizer, generation config, remote code).
struct AuxFile {
  std::string name;
  uint64_t size_bytes = 0;
};

// Immutable after opening; thread-safe.
class ModelSource {
 public:
  virtual ~ModelSource() = default;
  virtual const std::vector<SourceFile>& files() const = 0;
  virtual const std::vector<SourceTensor>& tensors() const = 0;  // by file, then offset
  // config.json, *.safetensors, *.index.json not among them
  virtual const std::vector<AuxFile>& aux_files() const = 0;
  // absent for a bare .safetensors file
  virtual const std::optional<std::string>& config_json() const = 0;
  // A hint that a range is read soon, from its start on.
  virtual void WillRead(int file_index, uint64_t offset, uint64_t size_bytes) const = 0;
  // Reads tensor bytes; no phase of a job reads a byte twice.
  virtual absl::Status Read(int file_index, uint64_t offset, absl::Span<std::byte> out) const = 0;
  virtual absl::StatusOr<std::string> ReadAuxFile(absl::string_view name,
                                                  uint64_t max_bytes) const = 0;
  virtual absl::StatusOr<std::unique_ptr<File>> OpenAuxFile(absl::string_view name) const = 0;
  // Digest over names, sizes and header digests (hex): the identity a resumed job checks before it
  // goes on.
  virtual std::string Fingerprint() const = 0;
};

// `path`: a directory (model.safetensors, or model.safetensors.index.json with its shards; an index
// naming a missing file or tensor is an error) or one .safetensors file. If both a single file and
// an index exist the single file wins (HF rule).
absl::StatusOr<std::unique_ptr<ModelSource>> OpenLocalSource(const ResolvedPath& path);

}  // namespace sinq

#endif  // SINQ_SERVER_SOURCE_MODEL_SOURCE_H_
