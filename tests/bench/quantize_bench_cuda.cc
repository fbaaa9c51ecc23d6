// Speed on a device, beside the copies that bound it, in one run. One JSON object on standard
// output.
//   device  balance + round + pack of weights that lie on the device: G weights/s by device events,
//   beside a copy of the same weights from device memory to device memory; each layer alone on one
//   stream, and the layers of a block on several streams, as the backend has them
//   host    from page-locked host memory back to page-locked host memory through the backend, its
//   streams
//           overlapping, as a share of the bandwidth of a plain copy to the device made right
//           before it
// Shapes: the linear layers of one Llama 8B block; BF16, default settings (4 bits, groups of 64).
// usage: quantize_bench_cuda [REPETITIONS]   without a device it says so and ends with 0
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/backend_cuda.h"
#include "kernels/layout.h"

namespace sinq::kernels {
namespace {

constexpr int kStreams = 3;        // of the backend
constexpr int kDeviceStreams = 4;  // of weights that lie on the device

struct LayerShape {
  const char* name;
  int64_t rows, cols;
  int64_t weights() const { return rows * cols; }
};
constexpr LayerShape kLayers[] = {
    {"q_proj", 4096, 4096},     {"k_proj", 1024, 4096},     {"v_proj", 1024, 4096},
    {"o_proj", 4096, 4096},     {"gate_proj", 14336, 4096}, {"up_proj", 14336, 4096},
    {"down_proj", 4096, 14336},
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// BF16 values of about a layer's spread.
void FillWeights(std::byte* to, int64_t count) {
  uint32_t state = 1;
  for (int64_t e = 0; e < count; ++e) {
    float sum = -2;
    for (int part = 0; part < 4; ++part) {
      state = state * 1664525 + 1013904223;
      sum += static_cast<float>(state >> 8) / (1 << 24);
    }
    sum *= 0.02f;
    uint32_t bits;
    std::memcpy(&bits, &sum, sizeof bits);
    const uint16_t half = static_cast<uint16_t>(bits >> 16);
    std::memcpy(to + 2 * e, &half, sizeof half);
  }
}

// What failed first; checked before anything is printed. Threads may share one.
class Checker {
 public:
  void operator()(int cuda_error, const char* what) {
    if (cuda_error != 0)
      (*this)(absl::InternalError(absl::StrCat(what, ": CUDA error ", cuda_error)));
  }
  void operator()(const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (status_.ok()) status_ = status;
  }
  absl::Status status() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return status_;
  }

 private:
  mutable std::mutex mutex_;
  absl::Status status_;
};

// One layer with everything on the device.
class DeviceLayer {
 public:
  DeviceLayer(const LayerShape& shape, cudaStream_t stream, Checker& check)
      : shape_(shape),
        stream_(stream),
        check_(check),
        tensor_(PlanTensor({}, shape.rows, shape.cols)) {
    const std::vector<PlaneSpec> specs = PlanesOf({}, shape.rows, shape.cols).value();
    const size_t weight_bytes = static_cast<size_t>(2 * shape.weights());
    weights_.data = Allocate(weight_bytes);
    copy_ = Allocate(weight_bytes);
    weights_.rows = shape.rows;
    weights_.cols = weights_.stride = shape.cols;
    arrays_ = LayOutDeviceArrays(tensor_, Allocate(DeviceArraysBytes(tensor_)));
    workspace_ = Allocate(PanelBytes(tensor_, tensor_.tiles));
    for (size_t p = 1; p < specs.size(); ++p) planes_.plane[p] = Allocate(specs[p].size_bytes);
    const PackedRows packed = PackedRowsOf(tensor_);
    range_.last = packed.rows;
    range_.codes = Allocate(static_cast<size_t>(packed.rows) * packed.row_bytes);
    std::fill_n(range_.strands, kMaxStrands, weights_);
    std::vector<std::byte> host(weight_bytes);
    FillWeights(host.data(), shape.weights());
    check_(cudaMemcpy(const_cast<void*>(weights_.data), host.data(), weight_bytes,
                      cudaMemcpyHostToDevice),
           "cudaMemcpy");
    check_(cudaEventCreate(&begin_), "cudaEventCreate");
    check_(cudaEventCreate(&end_), "cudaEventCreate");
  }
  ~DeviceLayer() {
    for (void* piece : pieces_) check_(cudaFree(piece), "cudaFree");
    check_(cudaEventDestroy(begin_), "cudaEventDestroy");
    check_(cudaEventDestroy(end_), "cudaEventDestroy");
  }
  DeviceLayer(const DeviceLayer&) = delete;
  DeviceLayer& operator=(const DeviceLayer&) = delete;

  // Puts the whole layer into its stream.
  void Quantize() {
    check_(cudaMemsetAsync(arrays_.summary, 0, sizeof(DeviceSummary), stream_), "cudaMemset");
    const TilePanel panel{0, tensor_.tiles};
    check_(LaunchBalance(tensor_, weights_, panel, arrays_, workspace_, stream_), "LaunchBalance");
    check_(LaunchFit(tensor_, weights_, panel, arrays_, workspace_, stream_), "LaunchFit");
    check_(LaunchStore(tensor_, arrays_, planes_, stream_), "LaunchStore");
    check_(LaunchEncode(tensor_, range_, arrays_, stream_), "LaunchEncode");
    check_(LaunchSumErrors(tensor_, arrays_, stream_), "LaunchSumErrors");
  }
  double QuantizeSeconds() {
    Start();
    Quantize();
    return Stop();
  }
  // Rounds of balancing that the tiles took, on average.
  double MeanRounds() {
    std::vector<DeviceTileOutcome> outcomes(static_cast<size_t>(tensor_.tiles));
    check_(cudaMemcpy(outcomes.data(), arrays_.outcomes, outcomes.size() * sizeof outcomes[0],
                      cudaMemcpyDeviceToHost),
           "cudaMemcpy");
    double rounds = 0;
    for (const DeviceTileOutcome& outcome : outcomes) rounds += outcome.rounds;
    return rounds / static_cast<double>(outcomes.size());
  }
  double CopySeconds() {
    Start();
    check_(cudaMemcpyAsync(copy_, weights_.data, static_cast<size_t>(2 * shape_.weights()),
                           cudaMemcpyDeviceToDevice, stream_),
           "cudaMemcpy on the device");
    return Stop();
  }

 private:
  void* Allocate(size_t size_bytes) {
    void* piece = nullptr;
    check_(cudaMalloc(&piece, size_bytes), "cudaMalloc");
    pieces_.push_back(piece);
    return piece;
  }
  void Start() { check_(cudaEventRecord(begin_, stream_), "cudaEventRecord"); }
  double Stop() {
    float milliseconds = 0;
    check_(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check_(cudaEventSynchronize(end_), "cudaEventSynchronize");
    check_(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return milliseconds * 1e-3;
  }

  const LayerShape shape_;
  const cudaStream_t stream_;
  Checker& check_;
  const CudaTensor tensor_;
  std::vector<void*> pieces_;
  DeviceWeights weights_;
  DeviceArrays arrays_;
  DevicePlanes planes_;
  EncodeRange range_;
  void* copy_ = nullptr;
  void* workspace_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

std::string DeviceFigures(const LayerShape& shape, int repetitions, Checker& check) {
  DeviceLayer layer(shape, nullptr, check);
  layer.QuantizeSeconds(), layer.CopySeconds();  // loads the kernels
  std::vector<double> quantize, copy;
  for (int i = 0; i < repetitions && check.status().ok(); ++i) {
    quantize.push_back(layer.QuantizeSeconds());
    copy.push_back(layer.CopySeconds());
  }
  if (!check.status().ok()) return "";
  const double weights = static_cast<double>(shape.weights());
  return absl::StrCat("{\"layer\":\"", shape.name, "\",\"rows\":", shape.rows,
                      ",\"cols\":", shape.cols, ",\"mean_rounds\":", layer.MeanRounds(),
                      ",\"quantize_gweights_per_second\":", weights / Median(quantize) * 1e-9,
                      ",\"device_copy_gweights_per_second\":", weights / Median(copy) * 1e-9, "}");
}

// The layers of a block on several streams, each of which has a host thread to fill it: the largest
// layers first, so that the streams end together.
class DeviceBlock {
 public:
  explicit DeviceBlock(Checker& check) : check_(check) {
    std::vector<LayerShape> shapes(std::begin(kLayers), std::end(kLayers));
    std::sort(shapes.begin(), shapes.end(), [](const LayerShape& a, const LayerShape& b) {
      return a.weights() > b.weights();
    });
    for (cudaStream_t& stream : streams_)
      check_(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    std::array<int64_t, kDeviceStreams> load{};
    for (const LayerShape& shape : shapes) {
      const size_t least = std::min_element(load.begin(), load.end()) - load.begin();
      load[least] += shape.weights();
      weights_ += static_cast<double>(shape.weights());
      layers_[least].push_back(std::make_unique<DeviceLayer>(shape, streams_[least], check));
    }
  }
  ~DeviceBlock() {
    for (auto& layers : layers_) layers.clear();
    for (const cudaStream_t stream : streams_)
      check_(cudaStreamDestroy(stream), "cudaStreamDestroy");
  }
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;

  double weights() const { return weights_; }
  // Host seconds for `times` blocks.
  double QuantizeSeconds(int times) {
    check_(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    const double begin = Now();
    std::vector<std::thread> threads;
    for (auto& layers : layers_) {
      threads.emplace_back([&layers, times] {
        for (int i = 0; i < times; ++i) {
          for (const auto& layer : layers) layer->Quantize();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    check_(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    return Now() - begin;
  }

 private:
  Checker& check_;
  double weights_ = 0;
  std::array<cudaStream_t, kDeviceStreams> streams_{};
  std::array<std::vector<std::unique_ptr<DeviceLayer>>, kDeviceStreams> layers_;
};

std::string BlockFigures(int repetitions, Checker& check) {
  constexpr int kBlocks = 8;
  DeviceBlock block(check);
  block.QuantizeSeconds(1);
  std::vector<double> seconds;
  for (int i = 0; i < repetitions && check.status().ok(); ++i)
    seconds.push_back(block.QuantizeSeconds(kBlocks));
  if (!check.status().ok()) return "";
  return absl::StrCat("{\"streams\":", kDeviceStreams, ",\"quantize_gweights_per_second\":",
                      kBlocks * block.weights() / Median(seconds) * 1e-9, "}");
}

// Layers in page-locked memory with room for their planes.
struct HostLayer {
  MatrixView in;
  std::vector<absl::Span<std::byte>> planes;
};

absl::StatusOr<HostLayer> MakeHostLayer(HostMemory& memory, const LayerShape& shape) {
  HostLayer layer;
  layer.in = {nullptr, shape.rows, shape.cols, WeightDtype::kBf16, {}};
  const absl::StatusOr<std::byte*> weights = memory.Allocate(layer.in.SizeBytes());
  if (!weights.ok()) return weights.status();
  FillWeights(*weights, shape.weights());
  layer.in.data = *weights;
  const std::vector<PlaneSpec> specs = PlanesOf({}, shape.rows, shape.cols).value();
  for (const PlaneSpec& spec : specs) {
    const absl::StatusOr<std::byte*> plane = memory.Allocate(spec.size_bytes);
    if (!plane.ok()) return plane.status();
    layer.planes.push_back({*plane, spec.size_bytes});
  }
  return layer;  // freed with the backend's memory
}

double QuantizeAll(const Backend& backend, const std::vector<HostLayer>& layers, Checker& check) {
  std::vector<absl::Status> statuses(layers.size());
  std::atomic<size_t> next = 0;
  const double begin = Now();
  std::vector<std::thread> threads;
  for (int t = 0; t < kStreams; ++t) {
    threads.emplace_back([&] {
      for (size_t i = next++; i < layers.size(); i = next++) {
        TensorStats stats;
        statuses[i] = backend.Quantize(
            layers[i].in, {}, {}, layers[i].planes, RunSerially, [] { return false; }, &stats);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = Now() - begin;
  for (const absl::Status& status : statuses) check(status);
  return seconds;
}

double CopyAll(void* to, const std::vector<HostLayer>& layers, Checker& check) {
  const double begin = Now();
  for (const HostLayer& layer : layers) {
    check(cudaMemcpyAsync(to, layer.in.data, layer.in.SizeBytes(), cudaMemcpyHostToDevice, nullptr),
          "cudaMemcpy to the device");
  }
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return Now() - begin;
}

std::string HostFigures(int repetitions, Checker& check) {
  CudaOptions options;
  options.devices = {0};
  options.streams = kStreams;
  const auto backends = MakeCudaBackends(options);
  check(backends.status());
  if (!backends.ok()) return "";
  const Backend& backend = *backends->front();
  std::vector<HostLayer> layers;
  double bytes = 0;
  for (int block = 0; block < 2; ++block) {
    for (const LayerShape& shape : kLayers) {
      absl::StatusOr<HostLayer> layer = MakeHostLayer(*backend.host_memory(), shape);
      check(layer.status());
      if (!layer.ok()) return "";
      bytes += static_cast<double>(layer->in.SizeBytes());
      layers.push_back(std::move(*layer));
    }
  }
  void* target = nullptr;  // as large as the largest layer
  check(cudaMalloc(&target, size_t{2} * 14336 * 4096), "cudaMalloc");
  std::vector<double> quantize, copy, ratio;
  QuantizeAll(backend, layers, check);
  for (int i = 0; i < repetitions && check.status().ok(); ++i) {
    copy.push_back(CopyAll(target, layers, check));
    quantize.push_back(QuantizeAll(backend, layers, check));
    ratio.push_back(copy.back() / quantize.back());
  }
  check(cudaFree(target), "cudaFree");
  if (!check.status().ok()) return "";
  return absl::StrCat("{\"bytes\":", bytes,
                      ",\"host_to_host_gbytes_per_second\":", bytes / Median(quantize) * 1e-9,
                      ",\"host_to_device_copy_gbytes_per_second\":", bytes / Median(copy) * 1e-9,
                      ",\"share_of_copy\":", Median(ratio), "}");
}

int Run(int repetitions) {
  const absl::StatusOr<std::shared_ptr<CudaRuntime>> runtime = MakeCudartRuntime();
  if (absl::IsNotFound(runtime.status())) {
    std::printf("{\"skipped\":\"no device\"}\n");
    std::fprintf(stderr, "%s\n", std::string(runtime.status().message()).c_str());
    return 0;
  }
  Checker check;
  check(runtime.status());
  std::vector<std::string> layers;
  std::string block, host, device;
  if (check.status().ok()) {
    const absl::StatusOr<CudaDeviceInfo> info = (*runtime)->DeviceInfo(0);
    check(info.status());
    if (info.ok()) device = info->name;
    check((*runtime)->UseDevice(0));
    for (const LayerShape& shape : kLayers)
      layers.push_back(DeviceFigures(shape, repetitions, check));
    block = BlockFigures(repetitions, check);
    host = HostFigures(repetitions, check);
  }
  if (!check.status().ok()) {
    std::fprintf(stderr, "quantize_bench_cuda: %s\n", check.status().ToString().c_str());
    return 1;
  }
  std::printf("{\"device\":\"%s\",\"repetitions\":%d,\"layers\":[%s],\"block\":%s,\"host\":%s}\n",
              device.c_str(), repetitions, absl::StrJoin(layers, ",").c_str(), block.c_str(),
              host.c_str());
  return 0;
}

}  // namespace
}  // namespace sinq::kernels

int main(int argc, char** argv) {
  const int repetitions = argc > 1 ? std::atoi(argv[1]) : 15;
  return sinq::kernels::Run(std::max(repetitions, 1));
}
