#include "server/export/gguf_file.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "server/base/error.h"
#include "server/base/limits.h"

namespace sinq {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are as they lie in memory");

constexpr absl::string_view kMagic = "GGUF";
constexpr uint32_t kVersion = 3;
constexpr uint64_t kMaxDimensions = 4;
constexpr uint64_t kMaxNameBytes = 63;  // ggml keeps names in 64 bytes, the last of them 0

// Types of metadata values.
enum ValueType : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64 };
constexpr uint32_t kValueTypes = 13;
constexpr uint64_t kValueBytes[kValueTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

struct Block {
  uint64_t values, size_bytes;
};

// The same version written by a machine of the other byte order.
constexpr uint32_t kSwappedVersion = kVersion << 24;
constexpr char kFileIsSplit[] = "split.count";

std::optional<Block> BlockOf(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return Block{1, 4};
    case GgmlType::kF16:
    case GgmlType::kBf16:
      return Block{1, 2};
    case GgmlType::kQ4_0:
      return Block{32, 18};
    case GgmlType::kQ4_1:
      return Block{32, 20};
    case GgmlType::kQ8_0:
      return Block{32, 34};
  }
  return std::nullopt;
}

uint64_t Padded(uint64_t size, uint64_t alignment) {
  return (size + alignment - 1) / alignment * alignment;
}

// Walks over a header. After the first error every further read gives nothing.
class Reader {
 public:
  Reader(absl::string_view head, absl::string_view label) : head_(head), label_(label) {}

  uint64_t at() const { return at_; }
  const absl::Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }

  void Fail(absl::string_view why) {
    if (!ok()) return;
    status_ = MakeError(absl::StatusCode::kInvalidArgument, Reason::kMalformedSource,
                        absl::StrCat(label_, ": ", why, " at byte ", at_, "."),
                        {{"file", std::string(label_)}, {"byte_offset", absl::StrCat(at_)}});
  }
  // Whether the first error was that there is no more to read.
  bool ended_early() const { return ended_early_; }
  void FailAtEnd() {
    if (ok()) ended_early_ = true;
    Fail("the header ends too early");
  }
  absl::string_view Bytes(uint64_t count) {
    if (ok() && count > head_.size() - at_) FailAtEnd();
    if (!ok()) return "";
    at_ += count;
    return head_.substr(at_ - count, count);
  }
  template <class Number>
  Number Read() {
    Number number = 0;
    const absl::string_view bytes = Bytes(sizeof number);
    if (ok()) std::memcpy(&number, bytes.data(), sizeof number);
    return number;
  }
  absl::string_view String() { return Bytes(Read<uint64_t>()); }

 private:
  const absl::string_view head_, label_;
  uint64_t at_ = 0;
  bool ended_early_ = false;
  absl::Status status_;
};

class Parser {
 public:
  Parser(absl::string_view head, uint64_t file_size_bytes, absl::string_view label)
      : head_(head), file_size_bytes_(file_size_bytes), reader_(head, label) {}

  absl::StatusOr<GgufFile> Run() {
    const uint64_t tensor_count = ReadCounts();
    ReadMetadata();
    ReadTensors(tensor_count);
    CheckData();
    if (!reader_.ok()) return reader_.status();
    return std::move(file_);
  }
  bool ended_early() const { return reader_.ended_early(); }

 private:
  uint64_t ReadCounts() {
    if (reader_.Bytes(kMagic.size()) != kMagic) reader_.Fail("this is not a GGUF file");
    CheckVersion(reader_.Read<uint32_t>());
    const auto tensors = reader_.Read<uint64_t>();
    file_.metadata_count = reader_.Read<uint64_t>();
    if (tensors > kMaxTensorsPerSource) {
      reader_.Fail(absl::StrCat("there are ", tensors, " tensors, more than ",
                                "max_tensors_per_source = ", kMaxTensorsPerSource));
    }
    if (file_.metadata_count > kMaxGgufPairs) {
      reader_.Fail(absl::StrCat("there are ", file_.metadata_count,
                                " pairs of metadata, more than max_gguf_pairs = ", kMaxGgufPairs));
    }
    return tensors;
  }

  void CheckVersion(uint32_t version) {
    if (version == kVersion) return;
    if (version == kSwappedVersion)
      return reader_.Fail("the file is big-endian; convert the model without --bigendian");
    reader_.Fail(absl::StrCat("the version of GGUF is ", version, " and not 3"));
  }

  void ReadMetadata() {
    const uint64_t begin = metadata_begin_ = reader_.at();
    std::set<absl::string_view> keys;
    for (uint64_t i = 0; i < file_.metadata_count && reader_.ok(); ++i) {
      const absl::string_view key = reader_.String();
      if (!keys.insert(key).second) reader_.Fail(absl::StrCat("a second \"", key, "\""));
      ReadValue(key, reader_.Read<uint32_t>());
    }
    if (!reader_.ok()) return;
    file_.metadata = std::string(head_.substr(begin, reader_.at() - begin));
    if (const auto split = file_.numbers.find(kFileIsSplit);
        split != file_.numbers.end() && split->second.value > 1) {
      return reader_.Fail(absl::StrCat("this is one of ", split->second.value,
                                       " files of a model; put them together with llama.cpp's "
                                       "gguf-split --merge"));
    }
    const auto alignment = file_.numbers.find("general.alignment");
    if (alignment == file_.numbers.end()) return;
    const uint64_t bytes = alignment->second.value;
    if (bytes > (1 << 16) || !std::has_single_bit(bytes))
      return reader_.Fail("general.alignment is not a power of two up to 65536");
    file_.alignment = static_cast<uint32_t>(bytes);
  }

  void ReadValue(absl::string_view key, uint32_t type) {
    if (type == kArray) {
      NoteOther(key);
      return SkipArray();
    }
    if (type == kString) {
      const absl::string_view text = reader_.String();
      if (key == "general.architecture") file_.architecture = std::string(text);
      return NoteOther(key);
    }
    if (type >= kValueTypes) return reader_.Fail("unknown type of a value");
    const absl::string_view bytes = reader_.Bytes(kValueBytes[type]);
    if (type == kBool && reader_.ok() && bytes[0] != 0 && bytes[0] != 1)
      return reader_.Fail("a bool that is neither 0 nor 1");
    if (type != kU8 && type != kU16 && type != kU32 && type != kU64) return NoteOther(key);
    if (!reader_.ok()) return;
    GgufNumber number{0, reader_.at() - bytes.size() - metadata_begin_,
                      static_cast<uint32_t>(bytes.size())};
    std::memcpy(&number.value, bytes.data(), bytes.size());
    file_.numbers[std::string(key)] = number;
  }

  void NoteOther(absl::string_view key) {
    if (reader_.ok()) file_.other_keys.insert(std::string(key));
  }

  void SkipArray() {
    const auto type = reader_.Read<uint32_t>();
    const auto count = reader_.Read<uint64_t>();
    if (type >= kValueTypes || type == kArray) return reader_.Fail("unknown type of an array");
    if (count > head_.size()) return reader_.FailAtEnd();
    if (type != kString) {
      reader_.Bytes(count * kValueBytes[type]);
      return;
    }
    for (uint64_t i = 0; i < count && reader_.ok(); ++i) reader_.String();
  }

  void ReadTensors(uint64_t count) {
    std::set<std::string> names;
    uint64_t end = 0;
    for (uint64_t i = 0; i < count && reader_.ok(); ++i) {
      GgufTensor tensor = ReadTensor();
      if (!reader_.ok()) return;
      if (!names.insert(tensor.name).second) reader_.Fail("a second tensor of one name");
      if (tensor.offset != end) reader_.Fail("a tensor does not follow the one before");
      const absl::StatusOr<uint64_t> size = GgufTensorBytes(tensor.dimensions, tensor.type);
      if (!size.ok()) return reader_.Fail(size.status().message());
      if (*size > file_size_bytes_ || end > file_size_bytes_)
        return reader_.Fail("a tensor is larger than the file");
      tensor.size_bytes = *size;
      end = Padded(tensor.offset + tensor.size_bytes, file_.alignment);
      file_.tensors.push_back(std::move(tensor));
    }
  }

  GgufTensor ReadTensor() {
    GgufTensor tensor;
    tensor.name = std::string(reader_.String());
    if (tensor.name.size() > kMaxNameBytes) reader_.Fail("a tensor's name is too long");
    const auto dimensions = reader_.Read<uint32_t>();
    if (dimensions < 1 || dimensions > kMaxDimensions) reader_.Fail("not 1 to 4 dimensions");
    for (uint32_t i = 0; i < dimensions && reader_.ok(); ++i)
      tensor.dimensions.push_back(reader_.Read<uint64_t>());
    tensor.type = static_cast<GgmlType>(reader_.Read<uint32_t>());
    tensor.offset = reader_.Read<uint64_t>();
    return tensor;
  }

  void CheckData() {
    if (!reader_.ok()) return;
    file_.data_offset = Padded(reader_.at(), file_.alignment);
    if (file_.tensors.empty()) return;
    const GgufTensor& last = file_.tensors.back();
    const uint64_t end = file_.data_offset + last.offset + last.size_bytes;
    if (end > file_size_bytes_) reader_.Fail("the file ends before its tensors do");
  }

  const absl::string_view head_;
  const uint64_t file_size_bytes_;
  Reader reader_;
  uint64_t metadata_begin_ = 0;
  GgufFile file_;
};

absl::Status KeyHasOtherType(absl::string_view key) {
  return MakeError(absl::StatusCode::kInvalidArgument, Reason::kMalformedSource,
                   absl::StrCat("The template's ", key,
                                " is not a number of 32 bits; make the template again with "
                                "llama.cpp's converter."),
                   {{"field", "recipe.gguf_template_uri"}});
}

template <class Number>
void Append(std::string& out, Number number) {
  out.append(reinterpret_cast<const char*>(&number), sizeof number);
}

}  // namespace

absl::string_view GgmlTypeName(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return "F32";
    case GgmlType::kF16:
      return "F16";
    case GgmlType::kBf16:
      return "BF16";
    case GgmlType::kQ4_0:
      return "Q4_0";
    case GgmlType::kQ4_1:
      return "Q4_1";
    case GgmlType::kQ8_0:
      return "Q8_0";
  }
  return "";
}

bool IsFloat(GgmlType type) {
  return type == GgmlType::kF32 || type == GgmlType::kF16 || type == GgmlType::kBf16;
}

absl::StatusOr<uint64_t> GgufTensorBytes(const std::vector<uint64_t>& dimensions, GgmlType type) {
  const std::optional<Block> block = BlockOf(type);
  if (!block.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("tensor type ", static_cast<uint32_t>(type),
                                                   " is not F32, F16, BF16, Q4_0, Q4_1 or Q8_0"));
  }
  if (dimensions.empty() || dimensions.size() > kMaxDimensions)
    return absl::InvalidArgumentError("not 1 to 4 dimensions");
  if (dimensions[0] % block->values != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the first dimension is not a multiple of ", block->values));
  }
  uint64_t values = 1;
  for (const uint64_t dimension : dimensions) {
    // Blocks take less than 4.01 bytes for a value.
    if (dimension == 0 || dimension > (uint64_t{1} << 60) / values)
      return absl::InvalidArgumentError("a dimension is 0 or too large");
    values *= dimension;
  }
  return values / block->values * block->size_bytes;
}

absl::StatusOr<GgufFile> ParseGguf(absl::string_view head, uint64_t file_size_bytes,
                                   absl::string_view label) {
  return Parser(head.substr(0, kMaxGgufHeaderBytes), file_size_bytes, label).Run();
}

absl::StatusOr<GgufFile> ReadGguf(const File& file, absl::string_view label) {
  constexpr uint64_t kFirstBytes = 1 * kMiB, kGrowth = 4;
  const absl::StatusOr<uint64_t> size = file.Size();
  if (!size.ok()) return size.status();
  std::string head;
  for (uint64_t want = kFirstBytes;; want *= kGrowth) {
    const uint64_t bytes = std::min({want, *size, kMaxGgufHeaderBytes});
    const uint64_t had = head.size();
    head.resize(bytes);
    absl::Status status = file.ReadAt(
        had, absl::MakeSpan(reinterpret_cast<std::byte*>(head.data()) + had, bytes - had));
    if (!status.ok()) return status;
    Parser parser(head, *size, label);
    absl::StatusOr<GgufFile> parsed = parser.Run();
    if (parsed.ok() || !parser.ended_early() || bytes == *size) return parsed;
    if (bytes == kMaxGgufHeaderBytes) {
      return MakeError(absl::StatusCode::kInvalidArgument, Reason::kLimitExceeded,
                       absl::StrCat(label, ": the header has more than max_gguf_header_bytes = ",
                                    kMaxGgufHeaderBytes, " bytes."),
                       {{"limit", "max_gguf_header_bytes"}});
    }
  }
}

absl::Status SetGgufNumber(GgufFile& file, const std::string& key, uint32_t value) {
  const auto found = file.numbers.find(key);
  if (found != file.numbers.end()) {
    GgufNumber& number = found->second;
    if (number.size_bytes != sizeof value) return KeyHasOtherType(key);
    std::memcpy(file.metadata.data() + number.offset, &value, sizeof value);
    number.value = value;
    return absl::OkStatus();
  }
  if (file.other_keys.contains(key)) return KeyHasOtherType(key);
  Append<uint64_t>(file.metadata, key.size());
  file.metadata += key;
  Append<uint32_t>(file.metadata, kU32);
  file.numbers[key] = {value, file.metadata.size(), sizeof value};
  Append(file.metadata, value);
  ++file.metadata_count;
  return absl::OkStatus();
}

absl::StatusOr<std::string> LayOutGguf(GgufFile& file) {
  std::string header(kMagic);
  Append(header, kVersion);
  Append<uint64_t>(header, file.tensors.size());
  Append(header, file.metadata_count);
  header += file.metadata;
  uint64_t end = 0;
  for (GgufTensor& tensor : file.tensors) {
    const absl::StatusOr<uint64_t> size = GgufTensorBytes(tensor.dimensions, tensor.type);
    if (!size.ok()) return Annotate(size.status(), tensor.name);
    tensor.offset = end;
    tensor.size_bytes = *size;
    end = Padded(end + *size, file.alignment);
    Append<uint64_t>(header, tensor.name.size());
    header += tensor.name;
    Append(header, static_cast<uint32_t>(tensor.dimensions.size()));
    for (const uint64_t dimension : tensor.dimensions) Append(header, dimension);
    Append(header, static_cast<uint32_t>(tensor.type));
    Append(header, tensor.offset);
  }
  header.resize(Padded(header.size(), file.alignment), '\0');
  file.data_offset = header.size();
  return header;
}

}  // namespace sinq
