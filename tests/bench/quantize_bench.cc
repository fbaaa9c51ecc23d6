// Weights per second of the CPU backend on one thread, beside memcpy of the same input, in buffers
// like those that the server's workers compute in.
//   quantize_bench --benchmark_format=json --benchmark_out=FILE
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "server/base/aligned_buffer.h"

namespace {

using namespace sinq::kernels;
using sinq::AlignedBuffer;

constexpr int64_t kRows = 4096, kCols = 4096;

uint16_t ToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// N(0, 0.02) with lognormal spreads of 0.2 over rows and columns, as the golden vectors' "mild"
// input.
AlignedBuffer MildWeights() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> row(kRows), col(kCols);
  for (float& r : row) r = std::exp(0.2f * normal(random));
  for (float& c : col) c = std::exp(0.2f * normal(random));
  AlignedBuffer buffer = *AlignedBuffer::Allocate(2 * kRows * kCols);
  auto* const weights = reinterpret_cast<uint16_t*>(buffer.data());
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t k = 0; k < kCols; ++k) {
      weights[i * kCols + k] = ToBf16(
          0.02f * normal(random) * row[static_cast<size_t>(i)] * col[static_cast<size_t>(k)]);
    }
  }
  return buffer;
}

struct Buffers {
  std::vector<AlignedBuffer> planes;
  std::vector<absl::Span<std::byte>> spans;
  AlignedBuffer scratch;
};

Buffers MakeBuffers(const Backend& backend, const QuantParams& params) {
  Buffers buffers;
  const auto specs = NativePlanes(params, kRows, kCols);
  for (const PlaneSpec& spec : *specs)
    buffers.planes.push_back(*AlignedBuffer::Allocate(spec.size_bytes));
  for (AlignedBuffer& plane : buffers.planes) buffers.spans.push_back(plane.span());
  buffers.scratch = *AlignedBuffer::Allocate(backend.ScratchBytes(params, kRows, kCols));
  return buffers;
}

void BM_Quantize(benchmark::State& state, const Backend* backend, QuantParams params,
                 const AlignedBuffer* weights) {
  Buffers buffers = MakeBuffers(*backend, params);
  const MatrixView in{weights->data(), kRows, kCols, WeightDtype::kBf16, {}};
  TensorStats stats;
  for (auto _ : state) {
    const absl::Status status = backend->Quantize(
        in, params, buffers.scratch.span(), buffers.spans, RunSerially, [] { return false; },
        &stats);
    if (!status.ok()) state.SkipWithError(std::string(status.message()).c_str());
  }
  state.counters["weights_per_second"] = benchmark::Counter(
      static_cast<double>(kRows * kCols), benchmark::Counter::kIsIterationInvariantRate);
  state.counters["mean_rounds"] = stats.mean_rounds;
  state.counters["relative_error"] = stats.relative_error;
}

void BM_Memcpy(benchmark::State& state, const AlignedBuffer* weights) {
  AlignedBuffer copy = *AlignedBuffer::Allocate(weights->SizeBytes());
  for (auto _ : state) {
    std::memcpy(copy.data(), weights->data(), copy.SizeBytes());
    benchmark::ClobberMemory();
  }
  state.counters["weights_per_second"] = benchmark::Counter(
      static_cast<double>(kRows * kCols), benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const AlignedBuffer weights = MildWeights();
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
