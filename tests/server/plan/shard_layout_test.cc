#include "server/plan/shard_layout.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace sinq {
namespace {

OutputRange RangeOf(const std::string& name, const std::string& dtype, int64_t count,
                    uint64_t size_bytes) {
  OutputRange range;
  range.tensor = {name, dtype, {count}, size_bytes};
  return range;
}

// Offsets behind the header, in the order given.
std::vector<uint64_t> OffsetsOf(std::vector<OutputRange>& ranges, PlannedFile* file) {
  std::vector<OutputRange*> pointers;
  for (OutputRange& range : ranges) pointers.push_back(&range);
  *file = LayOutShard("f", pointers);
  std::vector<uint64_t> offsets;
  for (const OutputRange& range : ranges) offsets.push_back(range.offset - file->header.size());
  return offsets;
}

TEST(ShardLayout, TensorsKeepThePlansOrder) {
  std::vector<OutputRange> ranges = {RangeOf("z", "U8", 6, 6), RangeOf("y", "F16", 5, 10),
                                     RangeOf("x", "F32", 2, 8), RangeOf("w", "I64", 1, 8)};
  PlannedFile file;
  EXPECT_EQ(OffsetsOf(ranges, &file), (std::vector<uint64_t>{0, 6, 16, 24}));
  EXPECT_EQ(file.size_bytes, file.header.size() + 32);
  EXPECT_EQ(file.header.size() % 8, 0u);
  const auto header = nlohmann::json::parse(file.header.substr(8));
  EXPECT_EQ(header["x"]["data_offsets"], nlohmann::json({16, 24}));
  EXPECT_EQ(header["x"]["dtype"], "F32");
}

TEST(ShardLayout, ExtrasFollowTheLargestDtypesFirst) {
  std::vector<OutputRange> ranges = {RangeOf("z", "U8", 6, 6), RangeOf("y", "F16", 5, 10)};
  std::vector<OutputRange> extras = {RangeOf("c", "U8", 3, 3), RangeOf("b", "I64", 1, 8),
                                     RangeOf("a", "U8", 1, 1)};
  const PlannedFile file =
      LayOutShard("f", {&ranges[0], &ranges[1]}, {&extras[0], &extras[1], &extras[2]});
  const uint64_t data = file.header.size();
  EXPECT_EQ(ranges[0].offset, data);
  EXPECT_EQ(ranges[1].offset, data + 6);
  EXPECT_EQ(extras[1].offset, data + 16);
  EXPECT_EQ(extras[2].offset, data + 24);
  EXPECT_EQ(extras[0].offset, data + 25);
}

TEST(ShardLayout, TheLargestDtypesComeFirstWhereThatWouldUnalignOne) {
  std::vector<OutputRange> ranges = {RangeOf("z", "U8", 7, 7), RangeOf("y", "F16", 5, 10),
                                     RangeOf("x", "F32", 2, 8), RangeOf("w", "F32", 1, 4)};
  PlannedFile file;
  EXPECT_EQ(OffsetsOf(ranges, &file), (std::vector<uint64_t>{22, 12, 4, 0}));
  EXPECT_EQ(file.size_bytes, file.header.size() + 29);
}

}  // namespace
}  // namespace sinq
