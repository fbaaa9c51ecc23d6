// Plans fit where they must, whatever the shape: every piece that the backend will cut is counted
// again here, one by one.
#include "kernels/cuda_memory_plan.h"

#include <algorithm>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cuda_arena.h"
#include "kernels/launch_config.h"  // kRowsPerBlock
#include "kernels/layout.h"

namespace sinq::kernels {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

MatrixView Shape(int64_t rows, int64_t cols, WeightDtype dtype = WeightDtype::kBf16) {
  return {nullptr, rows, cols, dtype, {}};
}

size_t LinesBytes(const CudaTensor& tensor, const RowRange& rows) {
  if (!IsPackedApart(tensor)) return 0;
  const PackedPiece piece = PieceOf(tensor, rows);
  return static_cast<size_t>(piece.lines) * piece.line_bytes;
}

// The bytes of the largest piece of rows that some packed rows read, with their codes.
size_t LargestEncodePiece(const CudaMemoryPlan& plan, const MatrixView& in) {
  const PackedRows packed = PackedRowsOf(plan.tensor);
  const int64_t per_row = plan.tensor.groups_per_row;
  size_t largest = 0;
  for (int64_t first = 0; first < packed.rows; first += plan.encode_rows) {
    const int64_t last = std::min(first + plan.encode_rows, packed.rows);
    size_t bytes = CodesBytes(plan.tensor, last - first) +
                   LinesBytes(plan.tensor, {first / per_row, last / per_row});
    for (int s = 0; s < packed.strands; ++s) {
      const RowRange rows = RowsOfStrand(plan.tensor, first, last, s);
      bytes += WeightsBytes(in, rows.last - rows.first, in.cols);
    }
    largest = std::max(largest, bytes);
  }
  return largest;
}

size_t LargestPanel(const CudaMemoryPlan& plan, const MatrixView& in) {
  size_t largest = 0;
  for (int64_t first = 0; first < plan.tensor.tiles; first += plan.panel_tiles) {
    const int64_t tiles = std::min(plan.panel_tiles, plan.tensor.tiles - first);
    const PanelExtent extent = ExtentOf(plan.tensor, {first, tiles});
    largest =
        std::max(largest, WeightsBytes(in, extent.rows.last - extent.rows.first, extent.cols) +
                              PanelBytes(plan.tensor, tiles));
  }
  return largest;
}

// Methods that need activations: the panels that are noted and the rows that are searched.
void ExpectSearchFits(const CudaMemoryPlan& plan, const MatrixView& in) {
  EXPECT_EQ(plan.search_rows > 0, plan.tensor.has_candidates);
  EXPECT_EQ(plan.inputs_bytes > 0, plan.tensor.has_candidates);
  if (!plan.tensor.has_candidates) return;
  const CudaTensor search = SearchTensorOf(plan.tensor);
  EXPECT_TRUE(plan.search_rows % kRowsPerBlock == 0 || plan.search_rows == in.rows);
  const size_t around = plan.resident ? WeightsBytes(in, in.rows, in.cols) : 0;
  for (int64_t first = 0; first < search.tiles; first += plan.search_tiles) {
    const int64_t tiles = std::min(plan.search_tiles, search.tiles - first);
    const PanelExtent extent = ExtentOf(search, {first, tiles});
    EXPECT_LE(around + (plan.resident ? 0 : WeightsBytes(in, in.rows, extent.cols)) +
                  PanelBytes(search, tiles),
              plan.moving_bytes);
  }
  EXPECT_LE(WeightsBytes(in, plan.search_rows, in.cols), plan.moving_bytes);
}

void ExpectFits(const CudaMemoryPlan& plan, const MatrixView& in, size_t arena_bytes,
                size_t limit_bytes) {
  EXPECT_LE(plan.total_bytes(), arena_bytes);
  EXPECT_LE(plan.moving_bytes, limit_bytes);
  EXPECT_GE(plan.panel_tiles, 1);
  EXPECT_LE(plan.panel_tiles, plan.tensor.tiles);
  EXPECT_GE(plan.encode_rows, 1);
  if (IsPackedApart(plan.tensor) && plan.encode_rows < PackedRowsOf(plan.tensor).rows) {
    EXPECT_EQ(plan.encode_rows % (kRowsApart * plan.tensor.groups_per_row), 0);
  }
  EXPECT_EQ(plan.moment_rows > 0, HasKurtosisGate(plan.tensor.params));
  EXPECT_GE(plan.arrays_bytes, DeviceArraysBytes(plan.tensor));
  ExpectSearchFits(plan, in);
  if (plan.resident) {
    EXPECT_LE(WeightsBytes(in, in.rows, in.cols) + CodesBytes(plan.tensor, plan.encode_rows) +
                  LinesBytes(plan.tensor, {0, in.rows}) + PanelBytes(plan.tensor, plan.panel_tiles),
              plan.moving_bytes);
    EXPECT_EQ(plan.encode_rows, PackedRowsOf(plan.tensor).rows);
    return;
  }
  EXPECT_LE(LargestPanel(plan, in), plan.moving_bytes);
  EXPECT_LE(LargestEncodePiece(plan, in), plan.moving_bytes);
  if (plan.moment_rows > 0) {
    EXPECT_LE(WeightsBytes(in, plan.moment_rows, in.cols) + MomentsBytes(plan.moment_rows),
              plan.moving_bytes);
  }
}

TEST(CudaMemoryPlanTest, ALayerThatFitsIsResidentInOnePanel) {
  const MatrixView in = Shape(4096, 4096);
  const absl::StatusOr<CudaMemoryPlan> plan = PlanCudaMemory(in, {}, 512 * kMiB, 512 * kMiB);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->resident);
  EXPECT_EQ(plan->panel_tiles, 64);
  ExpectFits(*plan, in, 512 * kMiB, 512 * kMiB);
}

TEST(CudaMemoryPlanTest, AnEmbeddingIsCutToFitASmallDevice) {
  const MatrixView in = Shape(151936, 5120);  // 1.45 GiB of weights
  const absl::StatusOr<CudaMemoryPlan> plan = PlanCudaMemory(in, {}, 1024 * kMiB, 1024 * kMiB);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_FALSE(plan->resident);
  EXPECT_GT(plan->panel_tiles, 1);
  EXPECT_LT(plan->panel_tiles, 80);
  ExpectFits(*plan, in, 1024 * kMiB, 1024 * kMiB);
}

QuantParams RandomParams(std::mt19937& random) {
  QuantParams params;
  params.bits = (const int[]){2, 3, 4, 5, 6, 8}[random() % 6];
  params.group_size = 32 << random() % 3;
  params.aux = random() % 2 ? AuxStorage::kU8 : AuxStorage::kF16;
  params.method = (const Method[]){Method::kSinq, Method::kSinq, Method::kRtn, Method::kAsinq,
                                   Method::kAwq}[random() % 5];
  params.profile = random() % 2 ? Profile::kDefault : Profile::kUpstream;
  params.symmetric = params.bits > 2 && random() % 2;
  const Layout layouts[] = {
      Layout::kSinq, Layout::kSinq, Layout::kDense,   Layout::kCompressedTensors,
      Layout::kAwq,  Layout::kGptq, Layout::kGgufQ4_0};
  params.layout = layouts[random() % 7];
  if (random() % 4 == 0) params.tiling = Tiling::k2D;
  return params;
}

TEST(CudaMemoryPlanTest, EveryPieceOfEveryPlanFits) {
  std::mt19937 random(1);
  int resident = 0, cut = 0, refused = 0;
  for (int i = 0; i < 3000; ++i) {
    const QuantParams params = RandomParams(random);
    MatrixView in = Shape(1 + static_cast<int64_t>(random() % 700),
                          16 * (1 + static_cast<int64_t>(random() % 60)),
                          static_cast<WeightDtype>(random() % 4));
    const std::vector<float> samples(static_cast<size_t>(in.cols) * (1 + random() % 9));
    const ActivationView activations{samples, static_cast<int64_t>(samples.size()) / in.cols, {}};
    if (NeedsActivations(params.method)) in.activations = &activations;
    if (!Validate(params).ok() || !PlanesOf(params, in.rows, in.cols).ok()) continue;
    const size_t arena_bytes = (size_t{1} << (14 + random() % 9)) + random() % 10000;
    const size_t limit_bytes = arena_bytes >> random() % 4;
    const absl::StatusOr<CudaMemoryPlan> plan =
        PlanCudaMemory(in, params, arena_bytes, limit_bytes);
    if (!plan.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(plan.status())) << plan.status();
      ++refused;
      continue;
    }
    ExpectFits(*plan, in, arena_bytes, limit_bytes);
    ++(plan->resident ? resident : cut);
    if (HasFailure()) FAIL() << in.rows << " x " << in.cols << " bits " << params.bits;
  }
  EXPECT_GT(resident, 100);
  EXPECT_GT(cut, 100);
  EXPECT_GT(refused, 100);
}

TEST(CudaMemoryPlanTest, TheRefusalNamesWhatWouldDo) {
  MatrixView in = Shape(512, 1024);
  const std::vector<float> samples(7 * 1024);
  const ActivationView activations{samples, 7, {}};
  in.activations = &activations;
  for (const QuantParams& params :
       {QuantParams{}, QuantParams{Method::kSinq, Profile::kUpstream},
        QuantParams{Method::kAsinq}}) {
    size_t enough = 0;  // the smallest arena that is not refused
    for (size_t bytes = 0; enough == 0; bytes += kArenaAlignment) {
      if (PlanCudaMemory(in, params, bytes, bytes).ok()) enough = bytes;
    }
    const absl::Status status =
        PlanCudaMemory(in, params, enough - kArenaAlignment, enough).status();
    EXPECT_TRUE(absl::StrContains(status.message(), absl::StrCat("at least ", enough, " bytes")))
        << status << " but " << enough;
  }
}

TEST(CudaMemoryPlanTest, HalvingTheLimitCutsFiner) {
  const MatrixView in = Shape(2048, 2048);
  absl::StatusOr<CudaMemoryPlan> plan = PlanCudaMemory(in, {}, 64 * kMiB, 64 * kMiB);
  ASSERT_TRUE(plan.ok());
  int halvings = 0;
  while (plan->panel_tiles > 1) {
    const CudaMemoryPlan before = *plan;
    plan = PlanCudaMemory(in, {}, 64 * kMiB, before.moving_bytes / 2);
    if (!plan.ok()) break;
    ++halvings;
    EXPECT_LE(plan->moving_bytes, before.moving_bytes / 2);
    EXPECT_TRUE(plan->panel_tiles < before.panel_tiles || plan->encode_rows < before.encode_rows ||
                (before.resident && !plan->resident));
  }
  EXPECT_GE(halvings, 4);
}

// Both methods must find room: the kurtosis gate may turn one into the other midway.
TEST(CudaMemoryPlanTest, TheGateMayClose) {
  QuantParams params;
  params.profile = Profile::kUpstream;
  const MatrixView in = Shape(256, 512);
  const absl::StatusOr<CudaMemoryPlan> plan = PlanCudaMemory(in, params, 16 * kMiB, 16 * kMiB);
  ASSERT_TRUE(plan.ok());
  params.method = Method::kRtn;
  const CudaTensor gated = PlanTensor(params, in.rows, in.cols);
  EXPECT_GE(plan->arrays_bytes, DeviceArraysBytes(gated));
  EXPECT_GE(PanelWorkspaceBytes(plan->tensor, 8), PanelBytes(gated, 8));
}

TEST(CudaMemoryPlanTest, EveryPanelOfAMeasurementFits) {
  std::mt19937 random(2);
  int cut = 0, refused = 0;
  for (int i = 0; i < 1000; ++i) {
    QuantParams params = RandomParams(random);
    params.method = (const Method[]){Method::kSinq, Method::kRtn, Method::kHqq}[random() % 3];
    const MatrixView in = Shape(1 + static_cast<int64_t>(random() % 700),
                                16 * (1 + static_cast<int64_t>(random() % 60)),
                                static_cast<WeightDtype>(random() % 4));
    const std::vector<CudaTensor> tensors(1 + random() % 5,
                                          PlanErrorMeasure(params, in.rows, in.cols));
    const size_t arena_bytes = (size_t{1} << (13 + random() % 9)) + random() % 10000;
    const size_t limit_bytes = arena_bytes >> random() % 3;
    const auto plan = PlanCudaMeasure(in, tensors, arena_bytes, limit_bytes);
    if (!plan.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(plan.status())) << plan.status();
      ++refused;
      continue;
    }
    EXPECT_LE(plan->total_bytes(), arena_bytes);
    EXPECT_LE(plan->moving_bytes, limit_bytes);
    EXPECT_GE(plan->arrays_bytes, tensors.size() * DeviceArraysBytes(tensors[0]));
    const int64_t tiles = tensors[0].tiles;
    for (int64_t first = 0; first < tiles; first += plan->panel_tiles) {
      const int64_t here = std::min(plan->panel_tiles, tiles - first);
      const PanelExtent extent = ExtentOf(tensors[0], {first, here});
      EXPECT_LE(WeightsBytes(in, in.rows, extent.cols) + PanelBytes(tensors[0], here),
                plan->moving_bytes);
    }
    cut += plan->panel_tiles < tiles;
  }
  EXPECT_GT(cut, 50);
  EXPECT_GT(refused, 50);
}

TEST(CudaMemoryPlanTest, FactorsAreCounted) {
  const std::vector<float> scales(4 * 8), rows(512), columns(1024);
  MatrixView in = Shape(512, 1024, WeightDtype::kF8E4M3);
  const size_t without = PlanCudaMemory(in, {}, 64 * kMiB, 64 * kMiB)->factors_bytes;
  in.block_scales = scales;
  in.row_factor = rows;
  in.column_factor = columns;
  const size_t with = PlanCudaMemory(in, {}, 64 * kMiB, 64 * kMiB)->factors_bytes;
  EXPECT_EQ(without, 0u);
  EXPECT_EQ(with, ArenaBytes(4 * 32) + ArenaBytes(4 * 512) + ArenaBytes(4 * 1024));
}

}  // namespace
}  // namespace sinq::kernels
