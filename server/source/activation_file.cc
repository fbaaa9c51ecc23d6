#include "server/source/activation_file.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "server/base/error.h"
#include "server/base/limits.h"
#include "server/base/sha256.h"
#include "server/source/float_element.h"
#include "server/source/safetensors_header.h"

namespace sinq {
namespace {

constexpr absl::string_view kSamples = ".samples", kSecondMoments = ".second_moments";
constexpr uint64_t kReadBytes = 1 << 20;  // between two looks at `cancelled`

absl::Status Refuse(absl::string_view tensor, absl::string_view what) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kMalformedSource,
                   absl::StrCat("Activations: ", tensor, " ", what, "."),
                   {{"tensor", std::string(tensor)}, {"field", "recipe.activations_uri"}});
}

// Second moments of anything are symmetric, not negative on the diagonal, and no element is larger
// than its row's and column's allow: |h_ij|^2 <= h_ii h_jj. `kRoom` is for rounding to BF16.
absl::Status CheckMoments(const ActivationTensor& tensor, absl::Span<const float> moments) {
  constexpr double kRoom = 0.02;
  const size_t size = static_cast<size_t>(tensor.cols);
  std::vector<double> root(size);
  for (size_t i = 0; i < size; ++i) {
    const double square = moments[i * size + i];
    if (square < 0)
      return Refuse(tensor.name, absl::StrCat("has a negative second moment at [", i, ", ", i,
                                              "]"));
    root[i] = std::sqrt(square);
  }
  for (size_t i = 0; i < size; ++i) {
    for (size_t j = 0; j < i; ++j) {
      const double below = moments[i * size + j], above = moments[j * size + i];
      const double most = root[i] * root[j], room = kRoom * most + 1e-30;
      const bool is_possible = std::abs(below) <= most + room && std::abs(below - above) <= room;
      if (is_possible) continue;
      return Refuse(tensor.name,
                    absl::StrCat("holds no second moments: [", i, ", ", j, "] is ", below, ", [", j,
                                 ", ", i, "] ", above, ", and the diagonal allows ", most));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ActivationFile>> ActivationFile::Open(const ResolvedPath& path) {
  absl::StatusOr<std::unique_ptr<File>> file = path.root->OpenForRead(path.relative);
  if (!file.ok()) return Annotate(file.status(), "activations_uri");
  const absl::StatusOr<SafetensorsHeader> header = ReadSafetensorsHeader(**file, path.display);
  if (!header.ok()) return Annotate(header.status(), "activations_uri");
  std::unique_ptr<ActivationFile> opened(new ActivationFile(*std::move(file)));
  for (const SafetensorsTensor& tensor : header->tensors) {
    if (absl::Status status = opened->Add(tensor, header->data_offset); !status.ok()) return status;
  }
  opened->fingerprint_ = Sha256Hex(absl::StrCat(header->sha256, " ", header->file_bytes));
  return opened;
}

absl::Status ActivationFile::Add(const SafetensorsTensor& tensor, uint64_t data_offset) {
  absl::string_view layer = tensor.name;
  ActivationTensor added;
  added.is_second_moments = absl::ConsumeSuffix(&layer, kSecondMoments);
  if (!added.is_second_moments && !absl::ConsumeSuffix(&layer, kSamples)) {
    return Refuse(tensor.name, absl::StrCat("is neither \"<layer>", kSamples, "\" nor \"<layer>",
                                            kSecondMoments, "\""));
  }
  if (!IsPlainFloat(tensor.dtype)) {
    return Refuse(tensor.name,
                  absl::StrCat("has dtype ", tensor.dtype, "; it must be F32, F16 or BF16"));
  }
  const bool is_matrix = tensor.shape.size() == 2 && tensor.shape[0] > 0 && tensor.shape[1] > 0;
  if (!is_matrix || (added.is_second_moments && tensor.shape[0] != tensor.shape[1])) {
    return Refuse(tensor.name, absl::StrCat("has the shape [", absl::StrJoin(tensor.shape, ", "),
                                            "]; it must be ",
                                            added.is_second_moments ? "[in_features, in_features]"
                                                                    : "[tokens, in_features]"));
  }
  if (!added.is_second_moments && tensor.shape[0] > kMaxActivationTokens) {
    return Refuse(tensor.name, absl::StrCat("has ", tensor.shape[0], " tokens, more than the ",
                                            kMaxActivationTokens,
                                            " that are allowed; give fewer, "
                                            "or second moments"));
  }
  added.name = tensor.name;
  added.dtype = tensor.dtype;
  added.rows = tensor.shape[0];
  added.cols = tensor.shape[1];
  added.offset = data_offset + tensor.begin;  // no wrap: both are within the file's real length
  added.size_bytes = tensor.end - tensor.begin;
  if (layers_.emplace(std::string(layer), std::move(added)).second) return absl::OkStatus();
  return Refuse(tensor.name, absl::StrCat("comes beside \"", layers_.find(layer)->second.name,
                                          "\"; give one of the two for a layer"));
}

absl::StatusOr<ActivationTensor> ActivationFile::Find(absl::string_view layer,
                                                      int64_t in_features) const {
  const auto found = layers_.find(layer);
  if (found == layers_.end()) {
    return Refuse(absl::StrCat(layer, kSamples),
                  absl::StrCat("is missing, and so is ", layer, kSecondMoments,
                               ", which the method needs; add one, exclude the layer, or give it "
                               "another method by a rule"));
  }
  if (found->second.cols == in_features) return found->second;
  return Refuse(found->second.name,
                absl::StrCat("has ", found->second.cols,
                             " columns, but the layer has in_features = ", in_features));
}

absl::Status ActivationFile::CheckLayers(
    absl::FunctionRef<bool(const std::string&)> is_layer) const {
  for (const auto& [layer, tensor] : layers_) {
    if (!is_layer(layer))
      return Refuse(tensor.name, "belongs to no layer of the source; compare the names");
  }
  return absl::OkStatus();
}

absl::Status ActivationFile::Read(const ActivationTensor& tensor, absl::Span<float> out,
                                  absl::FunctionRef<bool()> cancelled) const {
  const size_t width = FloatElementBytes(tensor.dtype);
  if (out.size() * width != tensor.size_bytes)
    return absl::InternalError("the buffer for activations has the wrong size");
  std::vector<std::byte> raw(std::min(kReadBytes, tensor.size_bytes));
  for (size_t at = 0; at < out.size();) {
    if (cancelled()) return absl::CancelledError("stopped while reading activations");
    const size_t count = std::min(raw.size() / width, out.size() - at);
    absl::Status status =
        file_->ReadAt(tensor.offset + at * width, absl::MakeSpan(raw).subspan(0, count * width));
    if (!status.ok()) return Annotate(status, tensor.name);
    for (size_t i = 0; i < count; ++i, ++at) {
      out[at] = FloatElementAt(raw.data(), tensor.dtype, i);
      if (std::isfinite(out[at])) continue;
      const int64_t index = static_cast<int64_t>(at);
      return Refuse(tensor.name, absl::StrCat("holds a NaN or infinity at [", index / tensor.cols,
                                              ", ", index % tensor.cols, "]"));
    }
  }
  return tensor.is_second_moments ? CheckMoments(tensor, out) : absl::OkStatus();
}

}  // namespace sinq
