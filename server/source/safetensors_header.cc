#include "server/source/safetensors_header.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "server/base/error.h"
#include "server/base/json.h"
#include "server/base/sha256.h"
#include "server/source/safetensors_dtype.h"

namespace sinq {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr absl::string_view kMetadataKey = "__metadata__";
// Object, tensor, array: nothing in a header is deeper.
constexpr int kHeaderDepth = 3;

// Makes the errors of one file.
class Complaint {
 public:
  explicit Complaint(absl::string_view label) : label_(label) {}

  absl::Status Malformed(absl::string_view why) const {
    return Make(Reason::kMalformedSource, absl::StrCat(label_, ": ", why, "."), {});
  }
  absl::Status Tensor(absl::string_view tensor, absl::string_view why) const {
    return Make(Reason::kMalformedSource,
                absl::StrCat(label_, ": tensor \"", tensor, "\" ", why, "."),
                {{"tensor", std::string(tensor)}});
  }
  absl::Status Dtype(absl::string_view tensor, absl::string_view dtype) const {
    return Make(
        Reason::kUnsupportedSource,
        absl::StrCat(label_, ": tensor \"", tensor, "\" has the unknown dtype \"", dtype, "\"."),
        {{"tensor", std::string(tensor)}, {"dtype", std::string(dtype)}});
  }
  absl::Status Limit(absl::string_view limit, absl::string_view why) const {
    return Make(Reason::kLimitExceeded, absl::StrCat(label_, ": ", why, "."),
                {{"limit", std::string(limit)}});
  }

 private:
  absl::Status Make(Reason reason, const std::string& message,
                    std::map<std::string, std::string> metadata) const {
    metadata["file"] = std::string(label_);
    return MakeError(absl::StatusCode::kInvalidArgument, reason, message, std::move(metadata));
  }

  const absl::string_view label_;
};

// Follows the grammar {"name": {"dtype": s, "shape": [n...], "data_offsets": [b, e]}, ...}.
// Anything else is refused where it appears, so that nothing unexpected is ever stored.
class HeaderEvents final : public JsonEvents {
 public:
  HeaderEvents(absl::string_view label, const SafetensorsLimits& limits)
      : complaint_(label), limits_(limits) {}

  SafetensorsHeader TakeHeader() { return std::move(header_); }

  absl::Status OnStart(Container container, int depth) override {
    const bool object = container == Container::kObject;
    if (depth <= 1 && object) return absl::OkStatus();
    if (depth == 2 && !object && !in_metadata_ && field_ == Field::kShape) return absl::OkStatus();
    if (depth == 2 && !object && !in_metadata_ && field_ == Field::kOffsets) {
      return absl::OkStatus();
    }
    return Unexpected(object ? "an object" : "a list");
  }

  absl::Status OnEnd(Container container, int depth) override {
    if (container == Container::kObject && depth == 1 && !in_metadata_) return FinishTensor();
    return absl::OkStatus();
  }

  absl::Status OnKey(absl::string_view key, int depth) override {
    if (depth == 1) return StartEntry(key);
    if (in_metadata_) {
      metadata_key_ = std::string(key);
      return absl::OkStatus();
    }
    return StartField(key);
  }

  absl::Status OnString(absl::string_view value, int depth) override {
    if (depth == 2 && in_metadata_) {
      header_.metadata[metadata_key_] = std::string(value);
      return absl::OkStatus();
    }
    if (depth != 2 || field_ != Field::kDtype) return Unexpected("a string");
    tensor_.dtype = std::string(value);
    has_dtype_ = true;
    return absl::OkStatus();
  }

  absl::Status OnUnsigned(uint64_t value, int depth) override {
    if (depth != 3 || in_metadata_) return Unexpected("a number");
    return field_ == Field::kShape ? AddDimension(value) : AddOffset(value);
  }

  absl::Status OnOther(Other, int) override {
    return Unexpected("a value that is neither string nor whole number");
  }

 private:
  enum class Field : uint8_t { kNone, kDtype, kShape, kOffsets };

  absl::Status Unexpected(absl::string_view what) const {
    if (tensor_.name.empty() && !in_metadata_) {
      return complaint_.Malformed(absl::StrCat(what, " where the header wants an object"));
    }
    if (in_metadata_) {
      return complaint_.Malformed("__metadata__ must be an object of strings only");
    }
    return complaint_.Tensor(tensor_.name, absl::StrCat("has ", what, " in an unexpected place"));
  }

  absl::Status StartEntry(absl::string_view key) {
    in_metadata_ = key == kMetadataKey;
    tensor_ = SafetensorsTensor();
    field_ = Field::kNone;
    has_dtype_ = has_shape_ = false;
    offsets_ = 0;
    if (in_metadata_) return absl::OkStatus();
    if (key.empty()) return complaint_.Malformed("a tensor has an empty name");
    if (key.size() > kMaxTensorNameBytes) {
      return complaint_.Limit(
          "max_tensor_name_bytes",
          absl::StrCat("a tensor name of ", key.size(),
                       " bytes is longer than max_tensor_name_bytes = ", kMaxTensorNameBytes));
    }
    const bool control = std::any_of(key.begin(), key.end(), [](char c) {
      return static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
    });
    if (control) return complaint_.Tensor(key, "has a control character in its name");
    if (header_.tensors.size() >= limits_.max_tensors) {
      return complaint_.Limit(
          "max_tensors_per_source",
          absl::StrCat("more than max_tensors_per_source = ", limits_.max_tensors, " tensors"));
    }
    tensor_.name = std::string(key);
    return absl::OkStatus();
  }

  absl::Status StartField(absl::string_view key) {
    if (key == "dtype") {
      field_ = Field::kDtype;
    } else if (key == "shape") {
      field_ = Field::kShape;
      has_shape_ = true;
    } else if (key == "data_offsets") {
      field_ = Field::kOffsets;
    } else {
      return complaint_.Tensor(tensor_.name, absl::StrCat("has the unknown field \"", key, "\""));
    }
    return absl::OkStatus();
  }

  absl::Status AddDimension(uint64_t value) {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return complaint_.Tensor(tensor_.name, absl::StrCat("has the impossible dimension ", value));
    }
    if (tensor_.shape.size() >= static_cast<size_t>(kMaxTensorRank)) {
      return complaint_.Limit("max_tensor_rank",
                              absl::StrCat("tensor \"", tensor_.name, "\" has more than ",
                                           "max_tensor_rank = ", kMaxTensorRank, " dimensions"));
    }
    tensor_.shape.push_back(static_cast<int64_t>(value));
    return absl::OkStatus();
  }

  absl::Status AddOffset(uint64_t value) {
    if (offsets_ == 0) tensor_.begin = value;
    if (offsets_ == 1) tensor_.end = value;
    if (++offsets_ > 2) {
      return complaint_.Tensor(tensor_.name, "has more than two data_offsets");
    }
    return absl::OkStatus();
  }

  absl::Status FinishTensor() {
    if (!has_dtype_ || !has_shape_ || offsets_ != 2) {
      return complaint_.Tensor(tensor_.name,
                               "lacks one of dtype, shape (a list) and data_offsets (two numbers)");
    }
    const std::optional<int> bits = DtypeBits(tensor_.dtype);
    if (!bits) return complaint_.Dtype(tensor_.name, tensor_.dtype);
    const std::optional<uint64_t> bytes = CheckedTensorBytes(*bits, tensor_.shape);
    const std::string shape = absl::StrJoin(tensor_.shape, ", ");
    if (!bytes) {
      return complaint_.Tensor(tensor_.name, absl::StrCat("has the shape [", shape,
                                                          "], whose size is not a number of bytes "
                                                          "below 2^64"));
    }
    if (tensor_.end < tensor_.begin || tensor_.end - tensor_.begin != *bytes) {
      return complaint_.Tensor(
          tensor_.name,
          absl::StrCat("has data_offsets [", tensor_.begin, ", ", tensor_.end, "], but its dtype ",
                       tensor_.dtype, " and shape [", shape, "] need ", *bytes, " bytes"));
    }
    header_.tensors.push_back(std::move(tensor_));
    tensor_ = SafetensorsTensor();
    return absl::OkStatus();
  }

  const Complaint complaint_;
  const SafetensorsLimits limits_;
  SafetensorsHeader header_;
  bool in_metadata_ = false;
  std::string metadata_key_;
  SafetensorsTensor tensor_;  // the entry being read
  Field field_ = Field::kNone;
  bool has_dtype_ = false, has_shape_ = false;
  int offsets_ = 0;
};

// Every byte of the data belongs to exactly one tensor.
absl::Status CheckCoverage(const std::vector<SafetensorsTensor>& tensors, uint64_t data_bytes,
                           const Complaint& complaint) {
  uint64_t covered = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.end > data_bytes) {
      return complaint.Tensor(tensor.name, absl::StrCat("ends at byte ", tensor.end,
                                                        " of the data, but the file "
                                                        "holds only ",
                                                        data_bytes, " bytes of data"));
    }
    if (tensor.begin != covered) {
      return complaint.Tensor(
          tensor.name, absl::StrCat("begins at byte ", tensor.begin, " of the data where ", covered,
                                    " was expected: ",
                                    tensor.begin < covered ? "tensors overlap" : "there is a gap"));
    }
    covered = tensor.end;
  }
  if (covered == data_bytes) return absl::OkStatus();
  return complaint.Malformed(absl::StrCat("the tensors end at byte ", covered,
                                          " of the data, but the "
                                          "file holds ",
                                          data_bytes, " bytes of data"));
}

uint64_t LittleEndian(const std::array<std::byte, kLengthBytes>& bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | std::to_integer<uint64_t>(bytes[i]);
  return value;
}

absl::Status CheckHeaderLength(uint64_t header_bytes, uint64_t file_bytes,
                               const SafetensorsLimits& limits, const Complaint& complaint) {
  if (header_bytes > limits.max_header_bytes) {
    return complaint.Limit(
        "max_safetensors_header_bytes",
        absl::StrCat("the header claims ", header_bytes, " bytes, more than ",
                     "max_safetensors_header_bytes = ", limits.max_header_bytes));
  }
  if (header_bytes > file_bytes - kLengthBytes) {
    return complaint.Malformed(absl::StrCat("the header claims ", header_bytes,
                                            " bytes, but the file has only ", file_bytes,
                                            "; is the download complete?"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json,
                                                         uint64_t data_bytes,
                                                         absl::string_view label,
                                                         const SafetensorsLimits& limits) {
  const Complaint complaint(label);
  if (json.empty() || json.front() != '{') {
    return complaint.Malformed("the header does not begin with \"{\"");
  }
  HeaderEvents events(label, limits);
  absl::Status status = ParseStrictJson(json, kHeaderDepth, label, events);
  if (!status.ok()) return status;
  SafetensorsHeader header = events.TakeHeader();
  // Empty tensors share their offset with their neighbour and must come before it.
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  status = CheckCoverage(header.tensors, data_bytes, complaint);
  if (!status.ok()) return status;
  return header;
}

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const File& file, absl::string_view label,
                                                        const SafetensorsLimits& limits) {
  const Complaint complaint(label);
  const absl::StatusOr<uint64_t> file_bytes = file.Size();
  if (!file_bytes.ok()) return file_bytes.status();
  if (*file_bytes < kLengthBytes) {
    return complaint.Malformed(
        absl::StrCat("a file of ", *file_bytes, " bytes is too short for a safetensors file"));
  }
  std::array<std::byte, kLengthBytes> prefix;
  absl::Status status = file.ReadAt(0, absl::MakeSpan(prefix));
  if (!status.ok()) return status;
  const uint64_t header_bytes = LittleEndian(prefix);
  status = CheckHeaderLength(header_bytes, *file_bytes, limits, complaint);
  if (!status.ok()) return status;

  std::string json(static_cast<size_t>(header_bytes), '\0');
  const absl::Span<std::byte> out(reinterpret_cast<std::byte*>(json.data()), json.size());
  status = file.ReadAt(kLengthBytes, out);
  if (!status.ok()) return status;
  const uint64_t data_offset = kLengthBytes + header_bytes;
  absl::StatusOr<SafetensorsHeader> header =
      ParseSafetensorsHeader(json, *file_bytes - data_offset, label, limits);
  if (!header.ok()) return header.status();
  Sha256 sha;
  sha.Update(absl::MakeConstSpan(prefix));
  sha.Update(json);
  header->sha256 = sha.HexDigest();
  header->data_offset = data_offset;
  header->file_bytes = *file_bytes;
  return header;
}

}  // namespace sinq
