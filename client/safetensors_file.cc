#include "client/safetensors_file.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace sinq::client {
namespace {

using Json = nlohmann::json;
constexpr int64_t kPrefixBytes = 8;
constexpr int kMaxJsonDepth = 8;  // object, tensor, list: 3

absl::Status Malformed(const LocalFile& file, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(file.path(), " is not a safetensors file: ", what,
                                                 " Check that the file is complete."));
}

// Parses without exceptions and refuses keys that occur twice.
absl::StatusOr<Json> ParseHeader(const LocalFile& file, const std::string& text) {
  std::vector<std::set<std::string>> keys;
  std::string trouble;
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxJsonDepth) trouble = "its header is nested too deeply.";
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.empty()) {
      const auto name = parsed.get<std::string>();
      if (!keys.back().insert(name).second) {
        trouble = absl::StrCat("its header names \"", name, "\" twice.");
      }
    }
    return true;
  };
  Json header = Json::parse(text, check, /*allow_exceptions=*/false);
  if (header.is_discarded()) trouble = "its header is not JSON.";
  if (trouble.empty() && !header.is_object()) trouble = "its header is not a JSON object.";
  if (!trouble.empty()) return Malformed(file, trouble);
  return header;
}

absl::StatusOr<std::string> ReadHeaderText(const LocalFile& file) {
  auto prefix = file.Read(0, kPrefixBytes);
  if (!prefix.ok()) return Malformed(file, "it is shorter than 8 bytes.");
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>((*prefix)[i]);
  if (length > static_cast<uint64_t>(kMaxHeaderBytes)) {
    return Malformed(file, absl::StrCat("its header claims ", length,
                                        " bytes at byte 0, the limit is ", kMaxHeaderBytes, "."));
  }
  if (static_cast<int64_t>(length) > file.size_bytes() - kPrefixBytes) {
    return Malformed(file, absl::StrCat("its header claims ", length, " bytes, the file has ",
                                        file.size_bytes(), "."));
  }
  return file.Read(kPrefixBytes, static_cast<int64_t>(length));
}

bool IsIndex(const Json& value) {
  return value.is_number_unsigned() &&
         value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
}

absl::Status ParseShape(const Json& value, TensorEntry& entry) {
  if (!value.is_array() || value.size() > static_cast<size_t>(kMaxRank)) {
    return absl::InvalidArgumentError("its shape is not a list of at most 8 sizes.");
  }
  int64_t elements = 1;
  for (const Json& size : value) {
    if (!IsIndex(size)) return absl::InvalidArgumentError("a size of its shape is not a count.");
    entry.shape.push_back(size.get<int64_t>());
    if (__builtin_mul_overflow(elements, entry.shape.back(), &elements)) {
      return absl::InvalidArgumentError("its shape has more than 2^63 elements.");
    }
  }
  if (__builtin_mul_overflow(elements, DtypeBytes(entry.dtype), &entry.size_bytes)) {
    return absl::InvalidArgumentError("its shape has more than 2^63 bytes.");
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorEntry> ParseEntry(const Json& value, int64_t data_start, int64_t file_bytes) {
  if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets") || !value["dtype"].is_string()) {
    return absl::InvalidArgumentError("its entry lacks dtype, shape or data_offsets.");
  }
  TensorEntry entry;
  entry.dtype = value["dtype"].get<std::string>();
  if (DtypeBytes(entry.dtype) == 0) {
    return absl::InvalidArgumentError(absl::StrCat("its dtype \"", entry.dtype, "\" is unknown."));
  }
  if (absl::Status status = ParseShape(value["shape"], entry); !status.ok()) return status;
  const Json& range = value["data_offsets"];
  if (!range.is_array() || range.size() != 2 || !IsIndex(range[0]) || !IsIndex(range[1])) {
    return absl::InvalidArgumentError("its data_offsets are not two byte counts.");
  }
  const auto begin = range[0].get<int64_t>();
  const auto end = range[1].get<int64_t>();
  if (begin > end || end > file_bytes - data_start || end - begin != entry.size_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "its bytes ", begin, " to ", end, " do not match its shape (", entry.size_bytes,
        " bytes) or do not lie in the file (", file_bytes - data_start, " data bytes)."));
  }
  entry.offset_bytes = data_start + begin;
  return entry;
}

absl::Status CheckCoverage(const LocalFile& file, const TensorEntries& entries,
                           int64_t data_start) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const auto& [name, entry] : entries) {
    ranges.emplace_back(entry.offset_bytes, entry.offset_bytes + entry.size_bytes);
  }
  std::sort(ranges.begin(), ranges.end());
  int64_t position = data_start;
  for (const auto& [begin, end] : ranges) {
    if (begin != position) {
      return Malformed(file,
                       absl::StrCat("its tensors overlap or leave a hole at byte ", position, "."));
    }
    position = end;
  }
  if (position == file.size_bytes()) return absl::OkStatus();
  return Malformed(file, absl::StrCat("its tensors end at byte ", position, ", the file at byte ",
                                      file.size_bytes(), "."));
}

}  // namespace

int64_t DtypeBytes(absl::string_view dtype) {
  static constexpr std::array<std::pair<absl::string_view, int64_t>, 15> kSizes = {{
      {"BOOL", 1},
      {"U8", 1},
      {"I8", 1},
      {"F8_E4M3", 1},
      {"F8_E5M2", 1},
      {"U16", 2},
      {"I16", 2},
      {"F16", 2},
      {"BF16", 2},
      {"U32", 4},
      {"I32", 4},
      {"F32", 4},
      {"U64", 8},
      {"I64", 8},
      {"F64", 8},
  }};
  for (const auto& [name, size] : kSizes) {
    if (name == dtype) return size;
  }
  return 0;
}

absl::StatusOr<TensorEntries> ReadSafetensorsHeader(const LocalFile& file) {
  const auto text = ReadHeaderText(file);
  if (!text.ok()) return text.status();
  const auto header = ParseHeader(file, *text);
  if (!header.ok()) return header.status();
  const int64_t data_start = kPrefixBytes + static_cast<int64_t>(text->size());
  TensorEntries entries;
  for (const auto& [name, value] : header->items()) {
    if (name == "__metadata__") continue;
    if (name.size() > kMaxTensorNameBytes) {
      return Malformed(file, absl::StrCat("a tensor name has ", name.size(),
                                          " bytes, the limit is ", kMaxTensorNameBytes, "."));
    }
    auto entry = ParseEntry(value, data_start, file.size_bytes());
    if (!entry.ok()) {
      return Malformed(file, absl::StrCat("tensor \"", name, "\": ", entry.status().message()));
    }
    entries.emplace(name, *std::move(entry));
  }
  if (absl::Status status = CheckCoverage(file, entries, data_start); !status.ok()) return status;
  return entries;
}

absl::StatusOr<std::string> SafetensorsHeader(const std::map<std::string, TensorContent>& tensors) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  int64_t position = 0;
  for (const auto& [name, tensor] : tensors) {
    int64_t end = 0;
    if (tensor.size_bytes < 0 || __builtin_add_overflow(position, tensor.size_bytes, &end)) {
      return absl::InvalidArgumentError(absl::StrCat("Tensor ", name, " has an impossible size."));
    }
    header[name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {position, end}}};
    position = end;
  }
  std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string prefix(kPrefixBytes, '\0');
  for (int i = 0; i < 8; ++i) prefix[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  return prefix + text;
}

absl::Status WriteSafetensors(const std::map<std::string, TensorContent>& tensors,
                              LocalFile& file) {
  const auto header = SafetensorsHeader(tensors);
  if (!header.ok()) return header.status();
  if (absl::Status status = file.Append(*header); !status.ok()) return status;
  for (const auto& [name, tensor] : tensors) {
    int64_t written = 0;
    const absl::Status status = tensor.produce([&](absl::string_view bytes) {
      written += static_cast<int64_t>(bytes.size());
      return file.Append(bytes);
    });
    if (!status.ok()) return status;
    if (written != tensor.size_bytes) {
      return absl::InternalError(absl::StrCat("Tensor ", name, " should have ", tensor.size_bytes,
                                              " bytes, ", written, " were written."));
    }
  }
  return absl::OkStatus();
}

}  // namespace sinq::client
