// Every unit of work gets a thread, whatever the shape, and no launch exceeds what CUDA allows.
#include "kernels/launch_config.h"

#include <limits>

#include "gtest/gtest.h"
#include "kernels/cuda_steps.h"

namespace sinq::kernels {
namespace {

TEST(LaunchConfigTest, NothingToDoLaunchesNothing) {
  EXPECT_EQ(WarpPerUnit(0, 4, 0).grid, 0u);
  EXPECT_EQ(ThreadPerUnit(0, 128).grid, 0u);
  EXPECT_EQ(BlockPerUnit(0, 64, 0).grid, 0u);
}

TEST(LaunchConfigTest, TheLastBlockMayHaveSpareUnits) {
  EXPECT_EQ(ThreadPerUnit(1, 128).grid, 1u);
  EXPECT_EQ(ThreadPerUnit(128, 128).grid, 1u);
  EXPECT_EQ(ThreadPerUnit(129, 128).grid, 2u);
  EXPECT_EQ(WarpPerUnit(4, 4, 0).grid, 1u);
  EXPECT_EQ(WarpPerUnit(5, 4, 0).grid, 2u);
}

TEST(LaunchConfigTest, SharedBytesAreOfTheWholeBlock) {
  const LaunchShape shape = WarpPerUnit(100, 4, 1000);
  EXPECT_EQ(shape.block, 128u);
  EXPECT_EQ(shape.shared_bytes, 4000u);
  EXPECT_EQ(BlockPerUnit(7, 64, 500).shared_bytes, 500u);
}

TEST(LaunchConfigTest, OneRowTakesOneWarp) {
  EXPECT_EQ(RowBlocks(1), 1);
  EXPECT_EQ(WarpsPerTile(1), 1);
  EXPECT_EQ(RowBlocks(33), 2);
  EXPECT_EQ(WarpsPerTile(256), 1);
  EXPECT_EQ(WarpsPerTile(257), 2);
}

// 151936 x 5120, group 64.
TEST(LaunchConfigTest, AnLmHeadFitsTheGrid) {
  const CudaTensor tensor = PlanTensor({}, 151936, 5120);
  EXPECT_EQ(tensor.tiles, 80);
  EXPECT_EQ(RowBlocks(tensor.rows), 4748);
  EXPECT_EQ(WarpsPerTile(tensor.rows), 594);
  EXPECT_EQ(WarpPerUnit(tensor.tiles * WarpsPerTile(tensor.rows), 4, 0).grid, 11880u);
  EXPECT_EQ(ThreadPerUnit(tensor.groups, 128).grid, 94960u);
}

TEST(LaunchConfigTest, MoreUnitsThanTheGridHoldsAreWalkedInStrides) {
  const int64_t many = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(ThreadPerUnit(many, 128).grid, static_cast<unsigned>(kMaxGrid));
  EXPECT_EQ(WarpPerUnit(many, 4, 0).grid, static_cast<unsigned>(kMaxGrid));
  EXPECT_EQ(BlockPerUnit(many, 64, 0).grid, static_cast<unsigned>(kMaxGrid));
  EXPECT_EQ(ThreadPerUnit(128 * kMaxGrid, 128).grid, static_cast<unsigned>(kMaxGrid));
  EXPECT_EQ(ThreadPerUnit(128 * kMaxGrid - 127, 128).grid, static_cast<unsigned>(kMaxGrid));
}

// ---------------------------------------------------------------- the plan beside it

// More than 2^31 weights and more than 2^31 bytes of every array: nothing may be computed in 32
// bits.
TEST(CudaPlanTest, SizesAreSixtyFourBits) {
  const CudaTensor tensor = PlanTensor({}, int64_t{1} << 20, int64_t{1} << 17);
  EXPECT_EQ(tensor.groups, int64_t{1} << 31);
  EXPECT_GE(DeviceArraysBytes(tensor), 4 * sizeof(float) * (size_t{1} << 31));
  EXPECT_GE(PanelBytes(tensor, tensor.tiles), 3 * sizeof(float) * (size_t{1} << 31));
  EXPECT_EQ(PackedRowsOf(tensor).rows, int64_t{1} << 30);
  const RowRange last = RowsOfStrand(tensor, (int64_t{1} << 30) - 1, int64_t{1} << 30, 1);
  EXPECT_EQ(last.first, tensor.rows - 1);
  EXPECT_EQ(last.last, tensor.rows);
}

TEST(CudaPlanTest, AMethodWithoutBalancingNeedsLessWorkspace) {
  QuantParams rtn;
  rtn.method = Method::kRtn;
  EXPECT_LT(PanelBytes(PlanTensor(rtn, 4096, 4096), 64) * 10,
            PanelBytes(PlanTensor({}, 4096, 4096), 64));
}

// All strands of all ranges together read every row that has groups, and a strand beyond the last
// group reads none.
TEST(CudaPlanTest, StrandsCoverTheTensor) {
  QuantParams params;
  params.bits = 3;  // ten strands
  const CudaTensor tensor = PlanTensor(params, 33, 192);
  const PackedRows packed = PackedRowsOf(tensor);
  EXPECT_EQ(packed.strands, kMaxStrands);
  EXPECT_EQ(packed.rows, 10);
  EXPECT_EQ(packed.row_bytes, 256u);
  int64_t next = 0;
  for (int s = 0; s < packed.strands; ++s) {
    const RowRange rows = RowsOfStrand(tensor, 0, packed.rows, s);
    if (s * packed.rows >= tensor.groups) {
      EXPECT_EQ(rows.first, rows.last);
      continue;
    }
    EXPECT_LE(rows.first, next);
    EXPECT_GT(rows.last, rows.first);
    next = rows.last;
  }
  EXPECT_EQ(next, tensor.rows);
}

TEST(CudaPlanTest, ArraysLieInsideTheirMemoryAndDoNotOverlap) {
  QuantParams params;
  params.profile = Profile::kUpstream;
  const CudaTensor tensor = PlanTensor(params, 33, 192);
  alignas(256) static std::byte memory[1 << 20];
  ASSERT_LE(DeviceArraysBytes(tensor), sizeof memory);
  const DeviceArrays arrays = LayOutDeviceArrays(tensor, memory);
  const void* in_order[] = {arrays.column,         arrays.inverse_column, arrays.outcomes,
                            arrays.summary,        arrays.scale,          arrays.zero,
                            arrays.error,          arrays.power,          arrays.largest,
                            arrays.overlap,        arrays.balanced_error, arrays.balanced_power,
                            arrays.exact_scale,    arrays.exact_zero,     arrays.row_factor,
                            arrays.partials};
  const std::byte* before = nullptr;
  for (const void* array : in_order) {
    const auto* at = static_cast<const std::byte*>(array);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(at) % 256, 0u);
    if (before != nullptr) {
      EXPECT_GT(at, before);
    }
    before = at;
  }
  EXPECT_LT(before, memory + DeviceArraysBytes(tensor));
}

}  // namespace
}  // namespace sinq::kernels
