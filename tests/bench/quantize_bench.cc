// Weights per second of the CPU backend on one thread, beside memcpy of the same input.
//   quantize_bench --benchmark_format=json --benchmark_out=FILE
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace {

using namespace sinq::kernels;

constexpr int64_t kRows = 4096, kCols = 4096;

uint16_t ToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// N(0, 0.02) with lognormal spreads of 0.2 over rows and columns, as the golden vectors' "mild"
// input.
std::vector<uint16_t> MildWeights() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> row(kRows), col(kCols);
  for (float& r : row) r = std::exp(0.2f * normal(random));
  for (float& c : col) c = std::exp(0.2f * normal(random));
  std::vector<uint16_t> weights(kRows * kCols);
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t k = 0; k < kCols; ++k) {
      weights[static_cast<size_t>(i * kCols + k)] = ToBf16(
          0.02f * normal(random) * row[static_cast<size_t>(i)] * col[static_cast<size_t>(k)]);
    }
  }
  return weights;
}

struct Buffers {
  std::vector<std::vector<std::byte>> planes;
  std::vector<absl::Span<std::byte>> spans;
  std::unique_ptr<std::byte, void (*)(void*)> scratch{nullptr, std::free};
  size_t scratch_bytes = 0;
};

Buffers MakeBuffers(const Backend& backend, const QuantParams& params) {
  Buffers buffers;
  const auto specs = NativePlanes(params, kRows, kCols);
  for (const PlaneSpec& spec : *specs) buffers.planes.emplace_back(spec.size_bytes);
  for (auto& plane : buffers.planes) buffers.spans.emplace_back(plane.data(), plane.size());
  buffers.scratch_bytes = (backend.ScratchBytes(params, kRows, kCols) + 63) / 64 * 64;
  buffers.scratch.reset(static_cast<std::byte*>(std::aligned_alloc(64, buffers.scratch_bytes)));
  return buffers;
}

void BM_Quantize(benchmark::State& state, const Backend* backend, QuantParams params,
                 const std::vector<uint16_t>* weights) {
  Buffers buffers = MakeBuffers(*backend, params);
  const MatrixView in{
      reinterpret_cast<const std::byte*>(weights->data()), kRows, kCols, WeightDtype::kBf16, {}};
  TensorStats stats;
  for (auto _ : state) {
    const absl::Status status = backend->Quantize(
        in, params, {buffers.scratch.get(), buffers.scratch_bytes}, buffers.spans, RunSerially,
        [] { return false; }, &stats);
    if (!status.ok()) state.SkipWithError(std::string(status.message()).c_str());
  }
  state.counters["weights_per_second"] = benchmark::Counter(
      static_cast<double>(kRows * kCols), benchmark::Counter::kIsIterationInvariantRate);
  state.counters["mean_rounds"] = stats.mean_rounds;
  state.counters["relative_error"] = stats.relative_error;
}

void BM_Memcpy(benchmark::State& state, const std::vector<uint16_t>* weights) {
  std::vector<uint16_t> copy(weights->size());
  for (auto _ : state) {
    std::memcpy(copy.data(), weights->data(), 2 * copy.size());
    benchmark::ClobberMemory();
  }
  state.counters["weights_per_second"] = benchmark::Counter(
      static_cast<double>(kRows * kCols), benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const std::vector<uint16_t> weights = MildWeights();
  const auto backends = MakeCpuBackendsForAllTargets();
  benchmark::RegisterBenchmark("memcpy", BM_Memcpy, &weights)->Unit(benchmark::kMillisecond);
  for (const auto& backend : backends) {
    const std::string target = backend->GetCapabilities().target;
    const QuantParams refined{}, minmax{.profile = Profile::kUpstream, .aux = AuxStorage::kF16},
        rtn{.method = Method::kRtn};
    benchmark::RegisterBenchmark(("upstream_f16/" + target).c_str(), BM_Quantize, backend.get(),
                                 minmax, &weights)
        ->Unit(benchmark::kMillisecond);
    benchmark::RegisterBenchmark(("default_u8/" + target).c_str(), BM_Quantize, backend.get(),
                                 refined, &weights)
        ->Unit(benchmark::kMillisecond);
    benchmark::RegisterBenchmark(("rtn_u8/" + target).c_str(), BM_Quantize, backend.get(), rtn,
                                 &weights)
        ->Unit(benchmark::kMillisecond);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
