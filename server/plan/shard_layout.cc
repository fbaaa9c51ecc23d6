#include "server/plan/shard_layout.h"

#include <algorithm>
#include <tuple>

#include "nlohmann/json.hpp"
#include "server/source/safetensors_dtype.h"

namespace sinq {
namespace {

constexpr size_t kLengthBytes = 8;  // the header's length, little-endian

std::string WithLength(std::string json) {
  json.append((8 - json.size() % 8) % 8, ' ');
  std::string header(kLengthBytes, '\0');
  for (size_t i = 0; i < kLengthBytes; ++i)
    header[i] = static_cast<char>(json.size() >> (8 * i) & 0xff);
  return header + json;
}

}  // namespace

PlannedFile LayOutShard(std::string file_name, const std::vector<OutputRange*>& ranges) {
  std::vector<OutputRange*> sorted = ranges;
  std::sort(sorted.begin(), sorted.end(), [](const OutputRange* a, const OutputRange* b) {
    const auto key = [](const OutputRange& r) {
      return std::make_tuple(-DtypeBits(r.tensor.dtype).value_or(8), r.tensor.name);
    };
    return key(*a) < key(*b);
  });
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  uint64_t at = 0;
  for (OutputRange* range : sorted) {
    range->offset = at;
    header[range->tensor.name] = {{"dtype", range->tensor.dtype},
                                  {"shape", range->tensor.shape},
                                  {"data_offsets", {at, at + range->tensor.size_bytes}}};
    at += range->tensor.size_bytes;
  }
  PlannedFile file{std::move(file_name), 0, WithLength(header.dump())};
  for (OutputRange* range : sorted) range->offset += file.header.size();
  file.size_bytes = file.header.size() + at;
  return file;
}

}  // namespace sinq
