// A file of what is known of layers' inputs, for the methods that need it. Hostile as a source is.
#ifndef SINQ_SERVER_SOURCE_ACTIVATION_FILE_H_
#define SINQ_SERVER_SOURCE_ACTIVATION_FILE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/base/file_system.h"

namespace sinq {

// Where the activations of one layer lie.
struct ActivationTensor {
  std::string name;  // "P.samples", "P.second_moments"
  std::string dtype;
  bool is_second_moments = false;
  int64_t rows = 0, cols = 0;  // samples: [tokens, in_features]; moments: [in_features] twice
  uint64_t offset = 0;         // from the start of the file
  uint64_t size_bytes = 0;

  // As fp32.
  uint64_t FloatBytes() const {
    return static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols) * sizeof(float);
  }
};

// Immutable after opening; thread-safe.
class ActivationFile {
 public:
  // A safetensors file with one matrix of F32, F16 or BF16 for each layer: "P.samples" with at most
  // kMaxActivationTokens rows, or "P.second_moments", square. InvalidArgument naming the tensor
  // that is neither, or the layer that has both.
  static absl::StatusOr<std::unique_ptr<ActivationFile>> Open(const ResolvedPath& path);

  // Of the layer P ("model.layers.0.mlp.up_proj"). InvalidArgument naming the tensor if there is
  // none, or if it does not have `in_features` columns.
  absl::StatusOr<ActivationTensor> Find(absl::string_view layer, int64_t in_features) const;
  // InvalidArgument naming a tensor whose layer `is_layer` does not know.
  absl::Status CheckLayers(absl::FunctionRef<bool(const std::string&)> is_layer) const;
  // Fills `out`, of rows x cols values. InvalidArgument naming the element that is NaN or infinite;
  // Cancelled.
  absl::Status Read(const ActivationTensor& tensor, absl::Span<float> out,
                    absl::FunctionRef<bool()> cancelled) const;
  // Hex digest of header and length: two files with it have the same tensors at the same places.
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  explicit ActivationFile(std::unique_ptr<File> file) : file_(std::move(file)) {}
  absl::Status Add(const struct SafetensorsTensor& tensor, uint64_t data_offset);

  // Constant after opening.
  const std::unique_ptr<File> file_;
  std::map<std::string, ActivationTensor, std::less<>> layers_;
  std::string fingerprint_;
};

}  // namespace sinq

#endif  // SINQ_SERVER_SOURCE_ACTIVATION_FILE_H_
