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

// Of one element, rounded up.
int64_t DtypeBytes(const OutputRange& range) {
  return (DtypeBits(range.tensor.dtype).value_or(8) + 7) / 8;
}

// The largest dtype first, then names decide.
void SortByDtype(std::vector<OutputRange*>::iterator first,
                 std::vector<OutputRange*>::iterator last) {
  std::sort(first, last, [](const OutputRange* a, const OutputRange* b) {
    return std::make_tuple(-DtypeBytes(*a), a->tensor.name) <
           std::make_tuple(-DtypeBytes(*b), b->tensor.name);
  });
}

// Whether each tensor, one behind the other, begins at a multiple of its elements' size.
bool AreAligned(const std::vector<OutputRange*>& ranges) {
  uint64_t at = 0;
  return std::all_of(ranges.begin(), ranges.end(), [&at](const OutputRange* range) {
    const bool is_aligned = at % static_cast<uint64_t>(DtypeBytes(*range)) == 0;
    at += range->tensor.size_bytes;
    return is_aligned;
  });
}

}  // namespace

PlannedFile LayOutShard(std::string file_name, const std::vector<OutputRange*>& ranges,
                        const std::vector<OutputRange*>& extras) {
  std::vector<OutputRange*> sorted = ranges;
  sorted.insert(sorted.end(), extras.begin(), extras.end());
  SortByDtype(sorted.begin() + static_cast<std::ptrdiff_t>(ranges.size()), sorted.end());
  if (!AreAligned(sorted)) SortByDtype(sorted.begin(), sorted.end());
  using Json = nlohmann::ordered_json;
  Json::object_t header;  // names are known to differ: no search for each of them
  header.push_back({"__metadata__", {{"format", "pt"}}});
  uint64_t at = 0;
  for (OutputRange* range : sorted) {
    range->offset = at;
    header.push_back({range->tensor.name,
                      {{"dtype", range->tensor.dtype},
                       {"shape", range->tensor.shape},
                       {"data_offsets", {at, at + range->tensor.size_bytes}}}});
    at += range->tensor.size_bytes;
  }
  PlannedFile file{std::move(file_name), 0, WithLength(Json(std::move(header)).dump())};
  for (OutputRange* range : sorted) range->offset += file.header.size();
  file.size_bytes = file.header.size() + at;
  return file;
}

}  // namespace sinq
